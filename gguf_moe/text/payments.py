"""The syntax tree of a template, changed so that what runs often draws on the budget.

A payment is a filter of the sandbox. Its name has a space, so that no template can write it.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from gguf_moe.text import budget as cost
from gguf_moe.text.budget import size

SPEND, COUNTED, COMPARED, SEARCHED, MADE, JOINED = (f"budget {i}" for i in range(6))


class AddPayments(NodeTransformer):
    """Makes loops, macros, starred arguments, comparisons, slices, `~` and lookups pay."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        test_cost = cost.LOOKUP + _cost(node.test)
        node.body.insert(0, _payment(_cost(*node.body)))
        self.generic_visit(node)
        node.iter = _filtered(node.iter, COUNTED, nodes.Const(test_cost))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        node.body.insert(0, _payment(_cost(*node.body, *node.defaults)))
        return self.generic_visit(node)

    visit_CallBlock = visit_Macro

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        node.body.insert(0, _payment(_cost(*node.body)))
        return self.generic_visit(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        first = node.ops[0]
        if len(node.ops) == 1 and first.op not in ("in", "notin"):
            if isinstance(node.expr, nodes.Const) != isinstance(first.expr, nodes.Const):
                return node  # a comparison takes no longer than the smaller of the two
        elif len(node.ops) == 1 and isinstance(node.expr, nodes.Const):
            first.expr = _filtered(first.expr, SEARCHED)
            return node
        node.expr = _filtered(node.expr, COMPARED)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, COMPARED)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _filtered(node.dyn_args, COUNTED, nodes.Const(cost.LOOKUP))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.Tuple(node.nodes, "load"), JOINED)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filtered(node, MADE)
        node.arg = _filtered(node.arg, COMPARED)
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _filtered(pair.key, COMPARED)
        return node


def _filtered(node: Any, name: str, *args: nodes.Expr) -> nodes.Expr:
    if isinstance(node, nodes.Const) and name == COMPARED:
        return node
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _payment(units: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_filtered(nodes.Const(units), SPEND))


def _cost(*roots: nodes.Node | None) -> int:
    """Units for one run through the nodes; what is in loops and macros pays again for itself."""
    units, pending = 0, [root for root in roots if root is not None]
    while pending:
        node = pending.pop()
        units += cost.STEP
        if isinstance(node, nodes.TemplateData):
            units += cost.MAKE * size(node.data)
        elif isinstance(node, nodes.List | nodes.Tuple | nodes.Dict):
            units += 10 * cost.STEP
        pending.extend(node.iter_child_nodes())
    return units
