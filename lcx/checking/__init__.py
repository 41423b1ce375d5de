"""Classes that are not lcx's own, tried in miniature against the laws that lcx's own keep."""

from lcx.checking.laws import BrokenLawError
from lcx.checking.own import Finding, check_own, findings

__all__ = ["BrokenLawError", "Finding", "check_own", "findings"]
