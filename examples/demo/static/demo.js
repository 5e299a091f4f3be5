// The page of the demo: it asks the application, and draws the answers.

const lifetime = Number(document.body.dataset.lifetime);
const signedIn = "signedIn" in document.body.dataset;
const leeway = 0.2 * lifetime; // from here on the next call renews the token

const by = (id) => document.getElementById(id);
const pause = (seconds) => new Promise((wake) => setTimeout(wake, 1000 * seconds));

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Asking -----------------------------------------------------------------------------------

async function ask(path, method = "GET") {
  const began = performance.now();
  try {
    const response = await fetch(path, { method, headers: { Accept: "application/json" } });
    const text = await response.text();
    return {
      status: response.status,
      body: text ? JSON.parse(text) : {},
      retryAfter: Number(response.headers.get("Retry-After")),
      ms: performance.now() - began,
    };
  } catch {
    return { status: 0, body: {}, retryAfter: 0, ms: 0 };
  }
}

function kindOf(status) {
  if (status === 503) return "wait";
  return status >= 200 && status < 300 ? "good" : "bad";
}

// What an answer that is no success means, in words and, after a sign-out, with a link.
function explain({ status, body, retryAfter }) {
  if (status === 0) return ["The demo does not answer. Has it been stopped?"];
  if (status === 503) {
    return [`No token is left, and none to be had. Retry-After: ${retryAfter} s. You stay signed in.`];
  }
  if (body.login_url) {
    return ["Your sign-in has ended. ", element("a", "Sign in again", { href: body.login_url })];
  }
  return [body.detail || body.title || "Something is wrong: look at the log."];
}

function show(place, kind, badge, ...content) {
  place.dataset.kind = kind;
  const line = element("p");
  if (badge) line.append(element("span", badge, { class: "badge" }), " ");
  line.append(...content);
  place.replaceChildren(line);
}

// The token --------------------------------------------------------------------------------

const token = { fingerprint: null, endsAt: null };
let providerIsUp = true;

function secondsLeft() {
  return token.endsAt === null ? null : (token.endsAt - performance.now()) / 1000;
}

async function lookAtToken() {
  const answer = await ask("/token");
  if (answer.status === 200) showToken(answer.body);
}

function showToken(facts) {
  const isNew = token.fingerprint !== null && token.fingerprint !== facts.fingerprint;
  token.fingerprint = facts.fingerprint;
  token.endsAt = performance.now() + 1000 * facts.expires_in;
  by("token-type").textContent = facts.type;
  by("fingerprint").textContent = facts.fingerprint;
  by("scope").replaceChildren(...facts.scope.map((word) => element("span", word)));
  if (isNew) flash(by("fingerprint"));
}

function flash(place) {
  place.classList.remove("flash");
  void place.offsetWidth; // restarts the animation
  place.classList.add("flash");
}

const phases = {
  unknown: ["Looking …", ""],
  fresh: ["Fresh", "Calls use it as it is."],
  due: ["Due", "The next call renews it; the others go on with this one."],
  over: ["Expired", "The next call renews it first."],
  lost: ["Expired", "The provider is away: nobody can renew it."],
};

function phaseOf(left) {
  if (left === null) return "unknown";
  if (left <= 0) return providerIsUp ? "over" : "lost";
  return left <= leeway ? "due" : "fresh";
}

function drawCountdown() {
  const left = secondsLeft();
  const phase = phaseOf(left);
  if (by("ring").dataset.phase !== phase) {
    by("ring").dataset.phase = phase;
    [by("phase").textContent, by("phase-text").textContent] = phases[phase];
  }
  if (left === null) return;
  const share = Math.min(100, Math.max(0, (100 * left) / lifetime));
  by("arc").style.strokeDasharray = `${share} 100`;
  by("seconds").textContent = Math.max(0, Math.ceil(left));
}

// Calls ------------------------------------------------------------------------------------

async function call() {
  const answer = await ask("/call");
  const status = answer.status === 200 ? answer.body.status : answer.status;
  const kind = kindOf(status);
  if (kind === "good") {
    const { name, calls } = answer.body.answer;
    show(by("result"), kind, status, `Hello, ${name}. `, element("span", `Call ${calls}, ${Math.round(answer.ms)}\u00a0ms`, { class: "soft" }));
  } else if (answer.status === 200) {
    show(by("result"), kind, status, "The API refused the token twice: it is renewed once per call, and not at all for ten seconds after that. Try again soon.");
  } else {
    show(by("result"), kind, status || "–", ...explain(answer));
  }
  addToStrip(kind, status);
  tellOutage(kind, answer.retryAfter);
  if (kind !== "wait" && status !== 0) await lookAtToken();
  return { kind, status };
}

function addToStrip(kind, status) {
  const strip = by("strip");
  strip.append(element("li", "", { "data-kind": kind, title: status, "aria-label": status }));
  while (strip.children.length > 30) strip.firstChild.remove();
}

async function callAgainAndAgain() {
  while (by("again").checked) {
    await call();
    await pause(1);
  }
}

function setAgain(on) {
  if (by("again").checked === on) return;
  by("again").checked = on;
  if (on) callAgainAndAgain();
}

// Trouble ----------------------------------------------------------------------------------

async function breakToken() {
  const place = by("break-result");
  const broken = await ask("/backstage/break", "POST");
  if (broken.status !== 204) return show(place, kindOf(broken.status), broken.status, ...explain(broken));
  const before = token.fingerprint;
  const { kind, status } = await call();
  if (before === token.fingerprint) return show(place, kind, status, "The call went through.");
  return show(place, kind, "", element("strong", "401, one refresh, 200."), " The view saw the 200 only.");
}

async function twenty() {
  const [place, dots] = [by("twenty-result"), by("dots")];
  setAgain(false);
  const others = ["call", "again", "break"].map(by);
  for (const button of others) button.disabled = true;
  dots.replaceChildren(...Array.from({ length: 20 }, () => element("li")));
  dots.hidden = false;
  await lookAtToken();
  while (secondsLeft() > 0) {
    show(place, "", "", `The token ends in ${Math.ceil(secondsLeft())} s. Nobody calls until then.`);
    await pause(Math.min(0.25, Math.max(0.01, secondsLeft())));
  }
  const before = (await lookBackstage())?.refreshes;
  const answer = await ask("/twenty", "POST");
  const after = (await lookBackstage())?.refreshes;
  await showTwenty(answer, after - before);
  for (const button of others) button.disabled = false;
}

async function showTwenty(answer, refreshes) {
  const place = by("twenty-result");
  if (answer.status !== 200) return show(place, kindOf(answer.status), answer.status, ...explain(answer));
  const statuses = answer.body.statuses;
  for (const [n, dot] of [...by("dots").children].entries()) {
    dot.style.setProperty("--n", n);
    dot.dataset.kind = kindOf(statuses[n]);
  }
  const good = statuses.filter((status) => status === 200).length;
  const spent = refreshes === 1 ? "one refresh" : `${refreshes} refreshes`;
  show(place, good === 20 && refreshes === 1 ? "good" : "bad", "", element("strong", `${good} × 200, ${spent}.`), ` ${Math.round(answer.ms)} ms for all of it.`);
  return lookAtToken();
}

let outage = null; // null, "begun" or "felt"

async function stopOrStart() {
  const stopping = providerIsUp;
  const answer = await ask(`/backstage/${stopping ? "stop" : "start"}`, "POST");
  if (answer.status !== 204) return show(by("stop-result"), "bad", answer.status, ...explain(answer));
  outage ??= "begun";
  await lookBackstage();
  tellOutage(stopping ? "good" : "wait", 0);
  setAgain(true);
}

// Says what a call shows of an outage, until the story is over.
function tellOutage(kind, retryAfter) {
  if (outage === null) return;
  const place = by("stop-result");
  if (kind === "wait" && !providerIsUp) {
    outage = "felt";
    show(place, "wait", 503, `The token has ended. Retry-After: ${retryAfter} s. Start the provider.`);
  } else if (kind === "wait") {
    show(place, "wait", "", "Started. The calls recover with the next attempt at a refresh …");
  } else if (kind === "good" && !providerIsUp) {
    show(place, "good", "", "Stopped. Calls go on with the token that there is.");
  } else if (kind === "good") {
    show(place, "good", 200, outage === "felt" ? "Recovered. Nobody had to sign in again." : "Started before anybody noticed.");
    outage = null;
  }
}

async function clientToken() {
  const place = by("client-result");
  const before = place.dataset.fingerprint;
  const answer = await ask("/client-token");
  if (answer.status !== 200) return show(place, kindOf(answer.status), answer.status, ...explain(answer));
  const facts = answer.body;
  place.dataset.fingerprint = facts.fingerprint;
  const origin = before === facts.fingerprint ? "from the cache" : "new from the provider";
  return show(
    place, "good", "", element("strong", facts.type), ` for ${facts.scope.join(" ")}, `,
    element("code", facts.fingerprint), ". ",
    element("span", `${Math.round(facts.expires_in)} s left, ${origin}.`, { class: "soft" }),
  );
}

// Behind the scenes ------------------------------------------------------------------------

async function lookBackstage() {
  const { status, body } = await ask("/backstage/status");
  const pill = by("provider");
  const state = status !== 200 ? "gone" : body.up ? "up" : "down";
  if (pill.dataset.state !== state) {
    pill.dataset.state = state;
    pill.textContent = { up: "Provider running", down: "Provider stopped", gone: "Demo stopped" }[state];
  }
  if (status !== 200) return null;
  providerIsUp = body.up;
  showLog(body.log);
  showButtons(body);
  return body;
}

function showButtons({ up, refreshes }) {
  if (!signedIn) {
    by("start-again").hidden = up;
    return;
  }
  by("stop").textContent = up ? "Stop the provider" : "Start the provider";
  by("sign-out").disabled = !up;
  by("sign-out").title = up ? "" : "Signing out leads to the provider: start it first.";
  if (by("refreshes").textContent !== String(refreshes)) {
    by("refreshes").textContent = refreshes;
    flash(by("refreshes"));
  }
}

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" });

function showLog(entries) {
  const log = by("log");
  const known = new Map([...log.children].map((line) => [Number(line.dataset.number), line]));
  const first = known.size === 0;
  for (const entry of [...entries].reverse()) {
    let line = known.get(entry.number);
    if (!line) {
      line = logLine(entry);
      if (!first) line.classList.add("new");
      log.prepend(line);
    }
    line.querySelector(".times").textContent = entry.times > 1 ? `× ${entry.times}` : "";
    line.querySelector("time").textContent = clock.format(1000 * entry.at);
  }
  const kept = new Set(entries.map((entry) => entry.number));
  for (const [number, line] of known) if (!kept.has(number)) line.remove();
}

function logLine({ number, source, level, text }) {
  const line = element("li", "", { "data-number": number, "data-source": source, "data-level": level });
  line.append(
    element("span", source, { class: "tag", "data-source": source }),
    element("span", text.replace(/ ms$/, "\u00a0ms"), { class: "text" }),
    element("span", "", { class: "times" }),
    element("time"),
  );
  return line;
}

// The beginning ----------------------------------------------------------------------------

function onPress(id, action) {
  by(id).addEventListener("click", async () => {
    by(id).disabled = true;
    await action();
    by(id).disabled = false;
    await lookBackstage();
  });
}

function begin() {
  for (const place of document.querySelectorAll("time[data-at]")) {
    const format = "date" in place.dataset ? calendar : clock;
    place.textContent = format.format(1000 * Number(place.dataset.at));
  }
  onPress("call", call);
  onPress("break", breakToken);
  onPress("twenty", twenty);
  onPress("client-token", clientToken);
  by("stop").addEventListener("click", stopOrStart);
  by("again").addEventListener("change", callAgainAndAgain);
  lookAtToken();
  setInterval(drawCountdown, 100);
}

if (signedIn) begin();
else onPress("start-again", () => ask("/backstage/start", "POST"));
lookBackstage();
setInterval(() => document.hidden || lookBackstage(), 1000);
