"""JSON request bodies about users, API keys and shares: endpoints of our own beside the Tinker API."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from openrl.protocol.validation import PRINTABLE
from openrl.protocol.wire import Id, ProjectId, WireModel

RoleName = Literal["admin", "member", "reader"]
Label = Annotated[str, StringConstraints(max_length=256, pattern=PRINTABLE)]
Lifetime = Annotated[int, Field(ge=60, le=315_360_000)]  # seconds: a minute to ten years
Overlap = Annotated[int, Field(ge=0, le=2_592_000)]  # seconds: at most thirty days


class CreateShareRequest(WireModel):
    """Body of `…/shares`."""

    ttl_seconds: Lifetime
    label: Label = ""


class CreateUserRequest(WireModel):
    """Body of `admin/users`."""

    email: Label = ""
    subject: Label = ""
    display_name: Label = ""
    role: RoleName = "member"


class UpdateUserRequest(WireModel):
    """Body of `admin/users/{user_id}`; what is absent stays as it is."""

    role: RoleName | None = None
    is_disabled: bool | None = None


class CreateKeyRequest(WireModel):
    """Body of `admin/keys`."""

    label: Label = ""
    role: RoleName = "member"
    user_id: Id | None = None
    project_id: ProjectId | None = None
    ttl_seconds: Lifetime | None = None


class RotateKeyRequest(WireModel):
    """Body of `admin/keys/{key_id}/rotate`."""

    overlap_seconds: Overlap = 3600
