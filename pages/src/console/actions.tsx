/**
 * What operators do: each action asks first, and says afterwards what it did.
 *
 * An action goes on when another view is opened: what it does is said above whatever is shown.
 */

import { signal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";

import { pause, problemOf } from "../calls";
import { type Generation, GenerationState } from "../gen/commerce/projection/v1/projection_service_pb";
import { countText, problemText } from "../words";
import { actor, asActor, isKnown, lookAgain, looks, operators, rememberActor } from "./operators";

// ---- What is said

interface Notice {
  id: number;
  kind: "working" | "done" | "failed";
  words: string;
}

const notices = signal<Notice[]>([]);
let lastNotice = 0;

/** Runs an action and says what it does, and what it did; the action returns that, and says meanwhile how far it is. */
async function carryOut(begins: string, action: (say: (words: string) => void) => Promise<string>): Promise<void> {
  const id = (lastNotice += 1);
  const say = (kind: Notice["kind"], words: string) => {
    const others = notices.peek().filter((it) => it.id !== id);
    notices.value = [...others, { id, kind, words }];
  };
  say("working", begins);
  try {
    say("done", await action((words) => say("working", words)));
  } catch (error) {
    say("failed", `${begins.replace(/ …$/, "")}: ${problemText(problemOf(error))}.`);
  }
  lookAgain();
}

export function Notices() {
  return (
    <div class="notices" role="status">
      {notices.value.map((it) => (
        <p key={it.id} class={`notice ${it.kind}`} data-notice={it.kind}>
          {it.kind === "working" && <span class="pulse" aria-hidden="true" />}
          <span class="grow">{it.words}</span>
          {it.kind !== "working" && (
            <button type="button" class="plain" onClick={() => (notices.value = notices.value.filter((one) => one !== it))}>
              Close
            </button>
          )}
        </p>
      ))}
    </div>
  );
}

// ---- What is asked

type Field =
  | { name: string; label: string; kind: "text"; required?: boolean }
  | { name: string; label: string; kind: "number" }
  | { name: string; label: string; kind: "check" };

interface Question {
  title: string;
  words: string;
  confirm: string;
  isDangerous?: boolean;
  fields?: Field[];
  then: (values: Record<string, string>) => void;
}

const question = signal<Question | null>(null);

export function Asking() {
  const dialog = useRef<HTMLDialogElement>(null);
  const shown = question.value;
  useLayoutEffect(() => {
    if (shown && !dialog.current?.open) dialog.current?.showModal();
  }, [shown]);
  const fields: Field[] = [
    ...(shown?.fields ?? []),
    ...(isKnown() ? [] : [{ name: "actor", label: "You, for the operators' log: an account or a pseudonym", kind: "text" } as const]),
  ];
  const confirm = (form: HTMLFormElement) => {
    const values = Object.fromEntries([...new FormData(form)].map(([name, it]) => [name, String(it)]));
    if (values.actor !== undefined) rememberActor(values.actor.trim());
    dialog.current?.close();
    shown?.then(values);
  };
  return (
    <dialog ref={dialog} aria-labelledby="question" onClose={() => (question.value = null)}>
      {shown && (
        <form
          key={shown.title}
          onSubmit={(it) => {
            it.preventDefault();
            confirm(it.currentTarget);
          }}
        >
          <h2 id="question">{shown.title}</h2>
          <p>{shown.words}</p>
          {fields.map((it) => (
            <label key={it.name} class={it.kind === "check" ? "inline" : "field"}>
              {it.kind === "check" && <input type="checkbox" name={it.name} />}
              <span>{it.label}</span>
              {it.kind === "text" && (
                <input
                  name={it.name}
                  required={it.required ?? false}
                  maxLength={it.name === "actor" ? 200 : 500}
                  defaultValue={it.name === "actor" ? actor() : ""}
                  autocomplete="off"
                />
              )}
              {it.kind === "number" && <input type="number" name={it.name} min={0} max={1_000_000} defaultValue="0" />}
            </label>
          ))}
          <p class="actions end">
            <button type="button" onClick={() => dialog.current?.close()}>
              Leave it as it is
            </button>
            <button type="submit" class={shown.isDangerous ? "danger" : "primary"}>
              {shown.confirm}
            </button>
          </p>
        </form>
      )}
    </dialog>
  );
}

// ---- Generations

async function until<T>(found: () => T | undefined | false): Promise<T> {
  for (;;) {
    const answer = found();
    if (answer) return answer;
    await nextChange();
  }
}

async function nextChange(): Promise<void> {
  const before = looks.peek();
  await new Promise<void>((resolve) => {
    const stop = looks.subscribe((now) => {
      if (now === before) return;
      stop();
      resolve();
    });
  });
}

/** The next look at the views, after what was asked. */
async function nextLook(): Promise<void> {
  lookAgain();
  await nextChange();
}

const other = (view: string): Generation | undefined => looks.peek().at(-1)?.generations.get(view);

export function comparisonText({ comparison }: Generation): string {
  if (!comparison) return "not compared";
  const counts: [bigint, string][] = [
    [comparison.changedCount, "changed"],
    [comparison.missingCount, "missing"],
    [comparison.addedCount, "added"],
  ];
  const differing = counts.filter(([count]) => count > 0n).map(([count, words]) => `${count} ${words}`);
  return `${countText(comparison.rowCount, "row")} compared, ${differing.join(", ") || "all the same"}`;
}

export function rebuild(view: string): void {
  question.value = {
    title: `Rebuild ${view}?`,
    words: "It is made anew from the feed, beside the one that is served, and compared with it. What is served goes on.",
    confirm: "Rebuild",
    fields: [
      { name: "rate", label: "Events a second at most; 0 for no limit of its own", kind: "number" },
      { name: "switch", label: "Serve it as soon as it is compared, whatever the comparison says", kind: "check" },
    ],
    then: (values) =>
      void carryOut(`Rebuilding ${view} …`, async () => {
        const switchWhenReady = values.switch === "on";
        const maxEventsPerSecond = Number(values.rate ?? 0);
        await operators.startRebuild({ view, maxEventsPerSecond, switchWhenReady }, asActor());
        await nextLook();
        const end = switchWhenReady ? GenerationState.KEPT : GenerationState.READY;
        const over = await until(() => {
          const it = other(view);
          return it === undefined ? "dropped" : it.state === end && it;
        });
        if (over === "dropped") return `The new generation of ${view} was dropped before it was ready.`;
        const done = switchWhenReady ? "is served" : "is ready to be served";
        return `${view} is rebuilt and ${done}: ${comparisonText(over)}.`;
      }),
  };
}

export function switchTo(generation: Generation): void {
  const { view } = generation;
  const isBack = generation.state === GenerationState.KEPT;
  const then = isBack ? GenerationState.READY : GenerationState.KEPT;
  question.value = {
    title: isBack ? `Serve the generation of ${view} before once more?` : `Serve the new generation of ${view}?`,
    words: `${comparisonText(generation)}. The one that is served now is kept and followed on, so that you can go back.`,
    confirm: isBack ? "Go back" : "Switch",
    then: () =>
      void carryOut(`Switching ${view} …`, async () => {
        await operators.switchGeneration({ view }, asActor());
        await nextLook();
        await until(() => {
          const it = other(view);
          return it === undefined || it.state === then;
        });
        return isBack
          ? `The generation of ${view} before is served once more; the new one is kept.`
          : `The new generation of ${view} is served; the one before is kept.`;
      }),
  };
}

export function dropGeneration({ view }: Generation): void {
  question.value = {
    title: `Drop the other generation of ${view}?`,
    words: "Whatever is being done with it ends, and its rows are gone. The one that is served goes on.",
    confirm: "Drop",
    isDangerous: true,
    then: () =>
      void carryOut(`Dropping the other generation of ${view} …`, async () => {
        await operators.dropGeneration({ view }, asActor());
        await nextLook();
        await until(() => other(view) === undefined);
        return `The other generation of ${view} is dropped.`;
      }),
  };
}

// ---- Parked rows

async function outcome(operationId: string, what: string, say: (words: string) => void): Promise<string> {
  for (let attempt = 0; ; attempt += 1) {
    const it = await operators.getOperation({ operationId });
    const events = `${countText(it.events, "event")} ${what}`;
    const far = `${countText(it.keys, "row")}, ${events}`;
    if (it.done) {
      const first = it.failing[0];
      const why = first ? ` ${first.key} cannot take event ${first.since} in: ${first.error}` : "";
      return it.failedKeys ? `${far}; ${countText(it.failedKeys, "row stays", "rows stay")} parked.${why}` : `${far}; none stays parked.`;
    }
    say(`${far} so far …`);
    await pause(Math.min(attempt, 3));
  }
}

export function redrive(view: string, key = ""): void {
  question.value = {
    title: key ? "Redrive this row?" : `Redrive all parked rows of ${view}?`,
    words: `${key ? `${view} ${key}` : "Each"} takes in what waits for it, in order. Mend the cause first: what still cannot be taken in stays parked.`,
    confirm: "Redrive",
    then: () =>
      void carryOut(`Redriving ${view} …`, async (say) => {
        const { operationId } = await operators.redriveParkedKeys({ view, key }, asActor());
        return `${view}: ${await outcome(operationId, "taken in", say)}`;
      }),
  };
}

export function dropParked(view: string, key: string): void {
  question.value = {
    title: "Drop what waits for this row?",
    words: `${view} ${key} goes on without these events, for good, and is not what its events say.`,
    confirm: "Drop for good",
    isDangerous: true,
    fields: [{ name: "reason", label: "Why; it is kept in the operators' log", kind: "text", required: true }],
    then: ({ reason = "" }) =>
      void carryOut(`Dropping what waits for ${key} …`, async (say) => {
        const { operationId } = await operators.dropParkedKey({ view, key, reason }, asActor());
        return `${view}: ${await outcome(operationId, "dropped", say)}`;
      }),
  };
}
