/** An event as it is stored, by its position, without what it tells of a person: a screen is seen by others too. */

import { toJson } from "@bufbuild/protobuf";

import { EventSchema } from "../gen/commerce/event/v1/event_pb";
import type { RecordedEvent } from "../gen/commerce/projection/v1/projection_service_pb";
import { useQuery } from "../live";
import { problemText } from "../words";
import { operators } from "./operators";
import { numberText } from "./words";

export function EventShown({ position }: { position: bigint }) {
  const { answer, problem } = useQuery(`event ${position}`, (_, signal) =>
    operators.explain({ of: { case: "position", value: position }, withoutPersonalData: true }, { signal }),
  );
  return (
    <section class="panel" aria-label="The first event that is lacking" aria-busy={!answer && !problem}>
      <h2>
        Event {numberText(position)} {answer?.event?.type}
      </h2>
      {problem && <p class="muted">{problemText(problem)}.</p>}
      {answer?.event && <Content event={answer.event} />}
    </section>
  );
}

export function Content({ event: { event, personalDataErased } }: { event: RecordedEvent }) {
  return (
    <>
      <pre tabIndex={0} aria-label="The event's fields">
        {event && JSON.stringify(toJson(EventSchema, event), null, 2)}
      </pre>
      <p class="muted small">
        {personalDataErased
          ? "It told of a person who was erased since."
          : "What it tells of a person is left out here: tandem why shows it to who may see it."}
      </p>
    </>
  );
}
