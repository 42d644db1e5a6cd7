"""Who may have an identity? Compares the sender's policy with what evidence has proved."""

from __future__ import annotations

import msgspec

from agent.core.errors import EvidenceError
from agent.core.model import Cloud


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that was proved to hold the key.

    Attributes:
        cloud: who vouched.
        account: the AWS account, or the project id.
        principal: the role's name, or the service account's email.
        session: AWS: the name of the role's session, chosen by whoever assumed it; the instance id if that was EC2.
        instance_id: ``i-...``, or the number of a GCE instance; ``None`` when nothing says.
        instance_proved: whether the vouching service itself says which instance, or only the session's name does.
        source: which evidence: its kind.
        partition: AWS: of its account, since numbers are given out by each for itself.
    """

    cloud: Cloud
    account: str
    principal: str
    source: str
    session: str | None = None
    instance_id: str | None = None
    instance_proved: bool = False
    partition: str = "aws"

    def __str__(self) -> str:
        where = "account" if self.cloud is Cloud.AWS else "project"
        instance = f" on {self.instance_id}" if self.instance_id else ""
        return f"{self.principal}{instance} in {where} {self.account}"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The machines that may have an identity. Empty is nobody; :meth:`of_identity` is the default.

    Attributes:
        accounts: AWS account ids: their machines, by whatever role. None: no AWS machine.
        roles: of them only those with these roles: names, or ARNs (``arn:aws:iam::ACCOUNT:role/PATH/NAME``).
        projects: Google project ids: their instances. None: no Google machine.
        service_accounts: of them only those that run as these, by email.
        instance_ids: of all of them only these: ``i-...`` or the numeric id. For AWS see PROTOCOL.md: with
            ``aws-sts`` a session's name says so, which is as good as the role's trust policy.
        partitions: AWS partitions whose STS is believed, and asked at all. Each has names, operators and account
            numbers of its own, so that whoever owns one of those names could vouch for a machine of any account.
    """

    accounts: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    instance_ids: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ("aws",)

    @classmethod
    def of_identity(
        cls, *, account: str | None = None, project: str | None = None, partition: str | None = None
    ) -> Policy:
        """The default: the account and the project of the identity that is sent, and nothing else."""
        return cls(
            accounts=(account,) if account else (),
            projects=(project,) if project else (),
            partitions=(partition or "aws",),
        )

    def check_partition(self, partition: str) -> None:
        """Return if machines of an AWS partition may be admitted at all. Before anybody there is asked.

        Raises:
            EvidenceError: code ``policy``.
        """
        if partition not in self.partitions:
            raise EvidenceError(
                f"the machine is in the partition {partition}; admitted are those in {', '.join(self.partitions)}",
                hint="to give it the identity all the same, name its account, and its role in full: "
                f'roles=["arn:{partition}:iam::ACCOUNT:role/NAME"]',
                code="policy",
            )

    def check(self, machine: Machine) -> None:
        """Return if the policy admits ``machine``.

        Raises:
            EvidenceError: code ``policy``: the message says which line does not, the hint what would.
        """
        aws = machine.cloud is Cloud.AWS
        if aws:
            self.check_partition(machine.partition)
        homes, name = (self.accounts, "accounts") if aws else (self.projects, "projects")
        if machine.account not in homes:
            raise _refused(machine, name, machine.account, homes)
        principals, name = (self.roles, "roles") if aws else (self.service_accounts, "service_accounts")
        if principals and not any(self._is(machine, one) for one in principals):
            raise _refused(machine, name, machine.principal, principals)
        if self.instance_ids and machine.instance_id not in self.instance_ids:
            raise _refused(machine, "instance_ids", machine.instance_id or "", self.instance_ids)

    @staticmethod
    def _is(machine: Machine, principal: str) -> bool:
        if machine.cloud is not Cloud.AWS or not principal.startswith("arn:"):
            return principal == machine.principal
        # A role's name is unique in its account whatever its path, and the session's ARN has no path.
        parts = principal.split(":", 5)
        return (
            len(parts) == 6
            and parts[1] == machine.partition
            and parts[2] == "iam"
            and parts[4] == machine.account
            and parts[5].startswith("role/")
            and parts[5].rpartition("/")[2] == machine.principal
        )


def _refused(machine: Machine, name: str, value: str, allowed: tuple[str, ...]) -> EvidenceError:
    return EvidenceError(
        f"the machine is {machine}; {name} admits {', '.join(allowed) or 'none'}",
        hint=f'to give it the identity all the same: {name}=["{value}"]' if value else None,
        code="policy",
    )
