/** The operators' console. */

import { Code } from "@connectrpc/connect";
import { render } from "preact";

import { Banner } from "../banner";
import { type Problem, setAccessToken } from "../calls";
import { Heading, announceViews } from "../heading";
import { useQuery } from "../live";
import { route } from "../route";
import { problemText } from "../words";
import { Asking, Notices } from "./actions";
import { Lag } from "./lag";
import { Log } from "./log";
import { EVERY_MILLISECONDS, asked, isKnown, look, lookAgain } from "./operators";
import { Overview } from "./overview";
import { Parked, ParkedRow } from "./parked";
import { View } from "./view";
import { Why } from "./why";

const PLACES: [path: string, name: string][] = [
  ["", "Overview"],
  ["parked", "Parked"],
  ["why", "Why"],
  ["log", "Log"],
  ["lag", "Lag"],
];

function Console() {
  const { path } = route.value;
  const [place = "", first = "", second = ""] = path;
  const { answer: now, problem } = useQuery(`look ${asked.value}`, (_, signal) => look(signal), { every: EVERY_MILLISECONDS });
  const isHere = (it: string) => it === place || (it === "" && place === "view");
  return (
    <>
      <a class="skip" href="#main" onClick={(it) => (it.preventDefault(), document.querySelector<HTMLElement>("main h1")?.focus())}>
        Skip to the content
      </a>
      <header>
        <a class="brand" href="#/">
          <img src="/icon.svg" alt="" width="24" height="24" />
          <span>Console</span>
        </a>
        <nav aria-label="Places">
          {PLACES.map(([it, name]) => (
            <a key={it} href={`#/${it}`} aria-current={isHere(it) ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
        {isKnown() && (
          <button type="button" class="plain" onClick={() => signIn("")}>
            Sign out
          </button>
        )}
      </header>
      <Banner />
      <Notices />
      <main id="main">
        {problem ? (
          <Refused problem={problem} />
        ) : !now ? (
          <Heading>Asking the projector</Heading>
        ) : (
          <>
            {place === "" && <Overview now={now} />}
            {place === "view" && <View key={first} name={first} now={now} />}
            {place === "parked" && (second ? <ParkedRow key={second} view={first} row={second} /> : <Parked />)}
            {place === "why" && <Why what={first} />}
            {place === "log" && <Log />}
            {place === "lag" && <Lag />}
            {!["", "view", "parked", "why", "log", "lag"].includes(place) && <Heading>There is no such page</Heading>}
          </>
        )}
      </main>
      <footer>
        <p>
          All that is here, <code>tandem</code> asks and does too. <a href="/">The shop</a>
        </p>
      </footer>
      <Asking />
    </>
  );
}

function signIn(token: string): void {
  setAccessToken(token);
  lookAgain();
}

/** What the servers want to know first, or why this is not for who asks. */
function Refused({ problem }: { problem: Problem }) {
  if (problem.code === Code.PermissionDenied) {
    return (
      <div class="narrow">
        <Heading>This is for operators</Heading>
        <p role="alert" class="note bad">
          You are known, and your token has no role for it: {problemText(problem)}.
        </p>
        <SignIn />
      </div>
    );
  }
  if (problem.code !== Code.Unauthenticated) {
    return (
      <div class="narrow">
        <Heading>The projector does not answer as it should</Heading>
        <p role="alert" class="note bad">
          {problemText(problem)}.
        </p>
        <button type="button" onClick={lookAgain}>
          Ask again
        </button>
      </div>
    );
  }
  return (
    <div class="narrow">
      <Heading>Who are you?</Heading>
      {isKnown() && (
        <p role="alert" class="note bad">
          The token is not taken: {problemText(problem)}.
        </p>
      )}
      <SignIn />
    </div>
  );
}

function SignIn() {
  return (
    <form
      class="delivery"
      onSubmit={(it) => {
        it.preventDefault();
        signIn(String(new FormData(it.currentTarget).get("token") ?? "").trim());
      }}
    >
      <label class="field">
        <span>Access token, which stays in this tab</span>
        <input name="token" type="password" required autocomplete="off" spellcheck={false} />
      </label>
      <p class="actions">
        <button type="submit" class="primary">
          Go on
        </button>
      </p>
    </form>
  );
}

announceViews();
const page = document.getElementById("page");
if (page) render(<Console />, page);
