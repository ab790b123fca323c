/**
 * The search's field, with what somebody may be about to look for: a combobox with a list, as ARIA describes it.
 *
 * Arrows choose, Enter takes what is chosen, Escape closes the list and keeps what was typed.
 */

import { useState } from "preact/hooks";

import type { ProductSuggestion } from "../gen/commerce/query/v1/query_service_pb";
import { useQuery } from "../live";
import { adjust, go, route } from "../route";
import { countText } from "../words";
import { queries } from "./orders";
import { Highlighted } from "./search";

const TYPING_MILLISECONDS = 60;
const MOST = 5;

type Suggestion = { query: string } | { product: ProductSuggestion };

export function SearchField() {
  const { path, settings } = route.value;
  const query = settings.get("q") ?? "";
  const [isOpen, open] = useState(false);
  const [chosen, choose] = useState(-1);
  const typed = isOpen ? query.trim() : "";
  const { answer } = useQuery(
    typed || null,
    (_, signal) => queries.suggestProducts({ query: typed, maxSuggestions: MOST }, { signal }),
    { delay: TYPING_MILLISECONDS },
  );
  const queriesFound = answer?.completedQueries.filter((it) => it !== typed) ?? [];
  const suggestions: Suggestion[] = [
    ...queriesFound.map((it) => ({ query: it })),
    ...(answer?.products ?? []).map((it) => ({ product: it })),
  ];
  const isShown = typed !== "" && suggestions.length > 0;

  function type(text: string): void {
    if (path.length) go(`/?q=${encodeURIComponent(text)}`);
    else adjust({ q: text, pages: null });
    choose(-1);
    open(true);
  }

  function take(suggestion: Suggestion): void {
    if ("query" in suggestion) type(suggestion.query);
    else go(`/product/${suggestion.product.productId}`);
    choose(-1);
    open(false);
  }

  function press(event: KeyboardEvent): void {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape" && isShown) {
      choose(-1);
      open(false);
    } else if (event.key === "Enter") {
      const suggestion = isShown ? suggestions[chosen] : undefined;
      if (suggestion) take(suggestion);
      else open(false);
    } else if (step && isShown) {
      // Between the last and the first there is the field itself, with what was typed.
      const places = suggestions.length + 1;
      choose(((chosen + 1 + step + places) % places) - 1);
    } else if (step) {
      open(true);
      return;
    } else {
      return;
    }
    event.preventDefault();
  }

  return (
    <form role="search" onSubmit={(it) => it.preventDefault()}>
      <label for="search" class="hidden">
        Search the shop
      </label>
      <input
        id="search"
        type="text"
        role="combobox"
        aria-autocomplete="list"
        aria-expanded={isShown}
        aria-controls="suggestions"
        aria-activedescendant={isShown && chosen >= 0 ? `suggestion-${chosen}` : undefined}
        enterkeyhint="search"
        placeholder="Search the shop"
        autocomplete="off"
        maxLength={200}
        value={query}
        onInput={(it) => type(it.currentTarget.value)}
        onKeyDown={press}
        onBlur={() => open(false)}
      />
      <ul
        id="suggestions"
        role="listbox"
        aria-label="Suggestions"
        class={isShown ? "suggestions" : "quiet"}
        // The field keeps the focus.
        onMouseDown={(it) => it.preventDefault()}
      >
        {isShown &&
          suggestions.map((it, index) => (
            <li
              key={"query" in it ? it.query : it.product.productId}
              id={`suggestion-${index}`}
              role="option"
              aria-selected={index === chosen}
              onClick={() => take(it)}
            >
              {"query" in it ? it.query : <Highlighted text={it.product.highlightedName} />}
              {"product" in it && <span class="muted small">{it.product.category || "Product"}</span>}
            </li>
          ))}
      </ul>
      <p role="status" class="hidden">
        {isShown ? countText(suggestions.length, "suggestion") : ""}
      </p>
    </form>
  );
}
