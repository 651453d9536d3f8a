"""
Checks that every optimizer adjoint and every selection method has to pass, for those who add one.

They raise `AssertionError` with what is wrong, and need no test framework.
"""

from hf_prune.testing.adjoint import check_adjoint
from hf_prune.testing.selection_method import check_selection_method

__all__ = ["check_adjoint", "check_selection_method"]
