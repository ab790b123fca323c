/** The heading of a view. After a step to another view it has the focus, so that a screen reader says where one is. */

import { effect } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";

import { route } from "./route";

let hasStepped = false;

export function Heading({ children }: { children: ComponentChildren }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    // That of a view that has its answer now takes the place of one that had the focus.
    if (hasStepped && document.activeElement === document.body) heading.current?.focus();
  }, []);
  return (
    <h1 ref={heading} tabIndex={-1}>
      {children}
    </h1>
  );
}

export function announceViews(): void {
  let before = route.peek().path.join("/");
  effect(() => {
    const now = route.value.path.join("/");
    if (now === before) return;
    before = now;
    hasStepped = true;
    // Who types goes on typing.
    if (document.activeElement instanceof HTMLInputElement) return;
    requestAnimationFrame(() => {
      window.scrollTo(0, 0);
      document.querySelector<HTMLElement>("main h1")?.focus();
    });
  });
}
