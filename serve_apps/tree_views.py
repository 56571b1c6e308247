"""Trees as clients see them."""

from __future__ import annotations

from serve_apps.text import TextCodec
from serve_apps.tree_records import Record, TreeRecord
from serve_apps.tree_schemas import NodeState, NodeView, TreeStats, TreeView


def node_view(record: Record, codec: TextCodec) -> NodeView:
    """A node."""
    return NodeView(
        id=record.id,
        parent=record.parent.id if record.parent is not None else None,
        at=record.at,
        state=_state(record),
        tokens=list(record.tokens),
        text=codec.decode(record.tokens),
        logprobs=list(record.logprobs),
        value=record.value,
        finish_reason=record.finish_reason,
        children=list(record.children),
        kv_bytes=record.kv_bytes,
    )


def tree_view(tree: TreeRecord, codec: TextCodec, now: float) -> TreeView:
    """A whole tree."""
    records = list(tree.nodes.values())
    stats = TreeStats(
        nodes=len(records),
        live_nodes=sum(not record.released for record in records),
        generated_tokens=tree.generated,
        kv_bytes=sum(record.kv_bytes for record in records),
    )
    return TreeView(
        id=tree.id,
        root=0,
        expires_in_s=max(0.0, tree.expires - now),
        nodes=[node_view(record, codec) for record in records],
        stats=stats,
    )


def _state(record: Record) -> NodeState:
    if record.released:
        return "released"
    return "generating" if record.job is not None else "idle"
