/** What stands in the way now, said once at the top of a page. It goes away by itself. */

import { type Condition, condition, restored } from "./calls";

const WORDS: Record<Condition, string> = {
  away: "The connection is gone. Trying again; nothing that you did is lost.",
  busy: "The servers are busy. Trying again; nothing that you did is lost.",
  behind: "What you did is stored. The pages follow in a moment, and show it then.",
};

export function Banner() {
  const met = condition.value;
  return (
    <div class="banners">
      <p role="status" class={met ? `banner ${met}` : "quiet"} data-condition={met ?? ""}>
        {met && <span class="pulse" aria-hidden="true" />}
        {met ? WORDS[met] : ""}
      </p>
      {restored.value && (
        <p role="status" class="banner">
          The servers were set back to an earlier state. This page shows what they know now.
          <button type="button" class="plain" onClick={() => (restored.value = false)}>
            All right
          </button>
        </p>
      )}
    </div>
  );
}
