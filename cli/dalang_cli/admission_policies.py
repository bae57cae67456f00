"""`dalang admission-policies`: prints the admission policies, for `kubectl apply -f -`."""

import argparse

import yaml
from dalang_operator import admission


def main(argv: list[str]) -> int:
    """Run the subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="dalang admission-policies",
        description="Prints the admission policies: they prove who decided an AgentApproval, and leave an AgentSchedule's runs to the operator. "
        "Install them with: dalang admission-policies | kubectl apply -f -",
    )
    parser.add_argument(
        "--validating-only",
        action="store_true",
        help="leave out the MutatingAdmissionPolicies, which Kubernetes serves from 1.36 on; they prove nothing, they only "
        "fill in spec.decidedBy and the annotation dalang.dev/created-by",
    )
    arguments = parser.parse_args(argv)
    found = admission.validating_policies() if arguments.validating_only else admission.policies()
    print(yaml.safe_dump_all(found, sort_keys=False), end="")
    return 0
