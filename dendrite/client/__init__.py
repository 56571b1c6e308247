r"""A client of a Dendrite server: trees and searches. OpenAI's own client does the rest.

```python
with Client("http://127.0.0.1:8000") as client, client.tree("Numbers: 3 7 8 25. Target: 92.\n") as tree:
    kids = tree.fork(tree.root, 8)
    for node in tree.generate(kids, max_tokens=32, stop="\n"):
        print(node.text)
```
"""

from dendrite.client.asynchronous import AsyncClient, AsyncTree
from dendrite.client.calls import RequestFailed
from dendrite.client.replies import Event, Node, Search, SearchOutcome, Tree, TreeStats
from dendrite.client.sync import Client, TreeHandle

__all__ = [
    "AsyncClient",
    "AsyncTree",
    "Client",
    "Event",
    "Node",
    "RequestFailed",
    "Search",
    "SearchOutcome",
    "Tree",
    "TreeHandle",
    "TreeStats",
]
