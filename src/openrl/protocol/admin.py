"""JSON request bodies about sessions and projects as resources (tinker-api §2.5, §4.9)."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from openrl.protocol.wire import Id, ProjectId, ShortText, WireModel


class AssignProjectRequest(WireModel):
    """Body of `sessions/{id}/project`."""

    project_id: ProjectId


class OwnSessions(WireModel):
    """The caller's own."""

    type: Literal["own"] = "own"


class AccessibleSessions(WireModel):
    """Whatever the caller may see: here that is the caller's own."""

    type: Literal["accessible"]


class SessionsOfUsers(WireModel):
    """Those of the listed owners."""

    type: Literal["user"]
    owner_urns: Annotated[tuple[Id, ...], Field(min_length=1, max_length=10)]


class PlainStatus(WireModel):
    """Sessions in a state that needs no detail."""

    type: Literal["active", "cancelled", "failed"]


class FinishedStatus(WireModel):
    """Sessions whose client said how it ended."""

    type: Literal["client_finished"]
    reasons: Annotated[tuple[Literal["success", "errored", "interrupted"], ...], Field(min_length=1)] | None = None


class SearchCursor(WireModel):
    """The last session of the page before."""

    last_created_at: AwareDatetime
    last_session_id: Id


Owner = Annotated[OwnSessions | AccessibleSessions | SessionsOfUsers, Field(discriminator="type")]
Status = Annotated[PlainStatus | FinishedStatus, Field(discriminator="type")]


class SessionSearchRequest(WireModel):
    """Body of `sessions/search`."""

    session_id: Id | None = None
    project_ids: Annotated[tuple[ProjectId, ...], Field(max_length=1000)] | None = None
    user_metadata: Annotated[dict[ShortText, ShortText], Field(max_length=100)] = Field(default={})
    display_name: Annotated[ShortText, Field(min_length=1)] | None = None
    owner: Owner = OwnSessions()
    statuses: Annotated[tuple[Status, ...], Field(min_length=1, max_length=100)] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: SearchCursor | None = None
