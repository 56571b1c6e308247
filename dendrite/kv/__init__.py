"""The KV cache as a tree: nodes that fork in O(1), and the pages they own and share."""

from dendrite.kv.cache import KvCache
from dendrite.kv.node import ForkPoint, Node, NodeState
from dendrite.kv.pages import SCRATCH_PAGE, PagePool, TailCopy
from dendrite.kv.tree import Tree

__all__ = ["SCRATCH_PAGE", "ForkPoint", "KvCache", "Node", "NodeState", "PagePool", "TailCopy", "Tree"]
