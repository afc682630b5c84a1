"""Prints what the transformers in a folder asks for and this environment does not have, a requirement a line."""

import sys
from importlib.metadata import PackageNotFoundError, distributions, version

from packaging.requirements import Requirement


def met(requirement: Requirement) -> bool:
    """Whether this environment has it, or needs it not: a requirement of an extra, or of another platform."""
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return True
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


(transformers,) = distributions(name="transformers", path=sys.argv[1:])
unmet = [each for each in map(Requirement, transformers.requires or []) if not met(each)]
print("\n".join(f"{each.name}{each.specifier}" for each in unmet))
