/** Sizes of a node's card and the distances between cards, in pixels at scale 1. */
const CARD = { width: 212, height: 42, column: 276, row: 52 };

/**
 * Places all nodes that are not below a collapsed one: `x` is the left edge, `y` the middle. Nodes that have not come
 * yet keep their places free, so that nothing moves during replay.
 */
class Layout {
  constructor(roots) {
    this.placed = [];
    this.levels = [];
    this.box = { x0: 0, x1: CARD.width, y0: 0, y1: CARD.height };
    if (roots.length) this._arrange(roots);
  }

  /** Trees hang one below the other from a place that is not shown. */
  _arrange(roots) {
    const tree = d3.hierarchy({ children: roots }, (node) => (node.collapsed ? null : node.children));
    d3
      .tree()
      .nodeSize([CARD.row, CARD.column])
      .separation((a, b) => (a.parent === b.parent ? 1 : 1.35))(tree);
    tree.each((place) => {
      if (!place.depth) return;
      const node = place.data;
      [node.x, node.y] = [place.y - CARD.column, place.x];
      node.level = this.levels[place.depth - 1] ??= [];
      node.rank = node.level.push(node) - 1;
      this.placed.push(node);
    });
    const [y0, y1] = d3.extent(this.placed, (node) => node.y);
    const x1 = (this.levels.length - 1) * CARD.column + CARD.width;
    this.box = { x0: 0, x1, y0: y0 - CARD.height / 2, y1: y1 + CARD.height / 2 };
  }

  /** The next node up (-1) or down (1) at the same depth for which `visible` holds. */
  neighbour(node, step, visible) {
    for (let rank = node.rank + step; rank >= 0 && rank < node.level.length; rank += step) {
      if (visible(node.level[rank])) return node.level[rank];
    }
    return null;
  }
}

/** Fold what is seldom visited, so that about `room` nodes show: the most visited node opens first. */
function foldAllBut(room, roots) {
  const waiting = [...roots];
  let shown = roots.length;
  let node;
  while ((node = d3.greatest(waiting, (each) => each.visits))) {
    waiting.splice(waiting.indexOf(node), 1);
    node.collapsed = shown + node.children.length > room && node.depth > 0;
    if (node.collapsed) continue;
    shown += node.children.length;
    waiting.push(...node.children);
  }
}

/** The nodes from the root to `node`. */
function lineage(node) {
  const path = [];
  for (let place = node; place; place = place.parent) path.push(place);
  return path.reverse();
}

/** How many nodes lie below `node` and satisfy `visible`. */
function below(node, visible) {
  let total = 0;
  const rest = [...node.children];
  while (rest.length) {
    const place = rest.pop();
    if (visible(place)) total++;
    rest.push(...place.children);
  }
  return total;
}
