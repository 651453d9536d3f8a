"""
Checks that every optimizer adjoint, layer rule and selection method has to pass, for those who add one.

They raise `AssertionError` with what is wrong, and need no test framework.
"""

from hf_prune.testing.adjoint import check_adjoint
from hf_prune.testing.layer_rule import check_layer_rule
from hf_prune.testing.selection_method import check_selection_method

__all__ = ["check_adjoint", "check_layer_rule", "check_selection_method"]
