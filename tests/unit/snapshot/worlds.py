"""Snapshots of every shape, for properties and fuzzers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from agent.core.model import AwsCredential, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.core.view import Absent, Answer, Ended, Facts, Live, Origin, Pending
from agent.snapshot import ForAudience, ForScopes, Limits, ServeSettings, Snapshot, Stretch, Time

#: What a string may hold that is text: no half of a pair.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MAYBE = st.none() | TEXT
SECRETS = TEXT.map(Secret)
INSTANTS = st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds
LISTS = st.lists(TEXT, max_size=4).map(tuple)

AWS = st.builds(
    AwsCredential,
    access_key_id=TEXT,
    secret_access_key=SECRETS,
    session_token=SECRETS,
    issued_at=INSTANTS,
    expires_at=INSTANTS,
    account_id=MAYBE,
    role_arn=MAYBE,
    role_name=MAYBE,
)
GOOGLE = st.builds(
    GoogleToken, access_token=SECRETS, issued_at=INSTANTS, expires_at=INSTANTS, email=MAYBE, scopes=LISTS
)
ID_TOKENS = st.builds(IdToken, token=SECRETS, audience=TEXT, issued_at=INSTANTS, expires_at=INSTANTS)
ANSWERS: st.SearchStrategy[Answer] = st.one_of(
    st.builds(Live, credential=AWS | GOOGLE, name=TEXT, origin=st.sampled_from(Origin)),
    st.builds(Pending, why=TEXT),
    st.builds(Ended, why=TEXT, passing=st.booleans()),
    st.builds(Absent, why=TEXT),
)


@st.composite
def stretches(draw: st.DrawFn) -> tuple[Stretch, ...]:
    """Some, in the order of their ends."""
    ends = sorted(draw(st.sets(INSTANTS, max_size=4)))
    return tuple(Stretch(draw(ANSWERS), end, draw(LISTS)) for end in [*ends, None])


SETTINGS = st.builds(
    ServeSettings,
    token_key=st.binary(max_size=64),
    imdsv1=st.booleans(),
    hide=LISTS,
    early_phase=st.timedeltas(timedelta(), timedelta(minutes=2)),
    limits=st.builds(Limits, head_bytes=st.integers(0, 1 << 20), head_seconds=st.floats(0, 3600)),
)
SNAPSHOTS = st.builds(
    Snapshot,
    version=st.integers(0, 1 << 62),
    settings=SETTINGS,
    time=st.builds(Time, lost=st.floats(0, 1e9), offset=st.floats(-1e10, 1e10)),
    aws=stretches(),
    gcp=stretches(),
    aws_names=LISTS,
    gcp_names=LISTS,
    facts=st.builds(Facts, region=MAYBE, zone=MAYBE, project_id=MAYBE),
    mints_id_tokens=st.booleans(),
    id_tokens=st.lists(st.builds(ForAudience, token=ID_TOKENS, until=INSTANTS), max_size=3).map(tuple),
    scoped=st.lists(st.builds(ForScopes, scopes=LISTS, token=GOOGLE, until=INSTANTS), max_size=3).map(tuple),
    container_tokens=st.lists(SECRETS, max_size=3).map(tuple),
    container_ids=st.lists(SECRETS, max_size=2).map(tuple),
    expects_bundle=st.booleans(),
    refused=MAYBE,
)
