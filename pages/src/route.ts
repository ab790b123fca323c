/** Where the reader is: a path and settings behind the address's #, so that each view can be linked to. */

import { signal } from "@preact/signals";

export interface Route {
  /** As in ["order", "<id>"]. */
  path: string[];
  settings: URLSearchParams;
}

function current(): Route {
  const [path = "", settings = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/").filter(Boolean).map(decodeURIComponent), settings: new URLSearchParams(settings) };
}

export const route = signal<Route>(current());
window.addEventListener("hashchange", () => (route.value = current()));

export function go(address: string): void {
  location.hash = address;
}

/** Changes the settings of this view, without a step in the browser's history. */
export function adjust(change: Record<string, string | null>): void {
  const settings = new URLSearchParams(route.peek().settings);
  for (const [key, value] of Object.entries(change)) {
    if (value) settings.set(key, value);
    else settings.delete(key);
  }
  const path = route.peek().path.map(encodeURIComponent).join("/");
  history.replaceState(null, "", `#/${path}${settings.size ? `?${settings}` : ""}`);
  route.value = current();
}
