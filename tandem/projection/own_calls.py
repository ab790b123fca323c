"""The RPCs of ProjectionService about what the projector that answers knows by itself: the nodes of the cache, as it
writes them, and what its auditor found. Another projector may say something else.
"""

import uuid
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from tandem.projection.cache_writer import CacheWriter
from tandem.projection.views import Progress
from tandem.runtime.call import Call
from tandem.runtime.checker import Checker
from tandem.runtime.worker import one_by_one

# PostgreSQL's names are no longer.
_LONGEST_NAME = 63


class OwnCalls:
    """rpcs: their names. handle: a worker's handler."""

    def __init__(self, descriptor: ServiceDescriptor, progress: Progress, cache: CacheWriter) -> None:
        self._progress = progress
        self._cache = cache
        answers: dict[str, Callable[[Any], Any]] = {"ListCacheNodes": self._nodes, "ListFindings": self._findings}
        methods = descriptor.methods_by_name
        self._answers = {name: answer for name, answer in answers.items() if name in methods}
        self._responses: dict[str, Any] = {it: GetMessageClass(methods[it].output_type) for it in self._answers}
        self.rpcs = tuple(self._answers)
        self.handle = one_by_one(self._answer)

    def _answer(self, call: Call) -> Any:
        return self._answers[call.method.name](call.request)

    def _nodes(self, _request: Any) -> Any:
        answer = self._responses["ListCacheNodes"]()
        states: Any = answer.DESCRIPTOR.fields_by_name["nodes"].message_type.fields_by_name["state"].enum_type
        for it in self._cache.look_at_nodes():
            answer.nodes.add(
                node=it.node,
                state=states.values_by_name[f"CACHE_NODE_STATE_{it.state}"].number,
                entries=it.entries,
                bytes=it.bytes,
                max_bytes=it.max_bytes,
                evictions=it.evictions,
                problem=it.problem,
            )
        return answer

    def _findings(self, request: Any) -> Any:
        check = Checker()
        check.text("view", request.view, _LONGEST_NAME)
        check.finish()
        answer = self._responses["ListFindings"]()
        kinds: Any = answer.DESCRIPTOR.fields_by_name["findings"].message_type.fields_by_name["kind"].enum_type
        for found_at, it in reversed(tuple(self._progress.findings)):
            if request.view in ("", it.subject):
                entry = answer.findings.add(
                    view=it.subject,
                    key=str(uuid.UUID(bytes=it.key)),
                    kind=kinds.values_by_name[f"FINDING_KIND_{it.kind}"].number,
                    position=it.position,
                    columns=it.columns,
                    error=it.error,
                    repaired=it.repaired,
                )
                entry.found_at.FromMilliseconds(int(found_at * 1000))
        return answer
