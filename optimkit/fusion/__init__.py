"""From rules to stages: what a rule computes, without any array.

A rule is traced into a graph (`trace`, `graph`), each node of which has a level (host,
uniform, element), and the graph is cut into stages where a reduction must be known
(`stages`). Nothing in this folder knows an array library, an optimizer or a dtype; nodes are
real, complex or boolean, and that is all.
"""
