"""The gateway as the holder of a credential may see it: whole, or only one project's part of it."""

from collections import OrderedDict
from dataclasses import replace

from openrl.gateway.context import Gateway
from openrl.gateway.project_store import ProjectStore
from openrl.gateway.row_cache import RowCache
from openrl.store.identities import Identity

_MAX_VIEWS = 256
_CACHED_ROWS = 1000
_CACHE_AGE_S = 10.0


class Views:
    """Hands out views; those of projects are kept, as they remember rows."""

    def __init__(self, whole: Gateway) -> None:
        self.whole = whole
        self._of_projects: OrderedDict[tuple[str, str], Gateway] = OrderedDict()

    def of(self, identity: Identity) -> Gateway:
        """What the identity may see; what it may do there is its role's."""
        if identity.project_id is None:
            return self.whole
        key = (identity.tenant_id, identity.project_id)
        view = self._of_projects.get(key)
        if view is None:
            view = self._of_projects[key] = self._make(identity.project_id)
        self._of_projects.move_to_end(key)
        if len(self._of_projects) > _MAX_VIEWS:
            self._of_projects.popitem(last=False)
        return view

    def _make(self, project_id: str) -> Gateway:
        """With caches of its own: what was remembered for others has not been checked."""
        whole = self.whole
        return replace(
            whole,
            store=ProjectStore(whole.store, project_id, RowCache(_CACHED_ROWS, _CACHE_AGE_S, whole.clock)),
            runs=RowCache(_CACHED_ROWS, _CACHE_AGE_S, whole.clock),
            samplers=RowCache(_CACHED_ROWS, _CACHE_AGE_S, whole.clock),
            losses=RowCache(_CACHED_ROWS, _CACHE_AGE_S, whole.clock),
        )
