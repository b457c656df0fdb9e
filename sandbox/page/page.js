"use strict";

const FEWEST = 2, MOST = 6, LARGEST = 64 * 1024 * 1024, EVERY_MS = 700;
const STATES = {queued: "waiting", claimed: "in progress", completed: "ready", failed: "failed", cancelled: "cancelled"};
const byId = (id) => document.getElementById(id);
const copyOf = (id) => byId(id).content.firstElementChild.cloneNode(true);

function setText(node, text) {
  // Unchanged text is left alone: a screen reader would say it again.
  if (node.textContent !== text) node.textContent = text;
}

function announce(text) {
  setText(byId("news"), text);
}

async function ask(path, options) {
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || `The studio answered ${response.status}.`);
  return answer;
}

function post(path, body) {
  const headers = {"Content-Type": "application/json"};
  return ask(path, {method: "POST", headers, body: JSON.stringify(body)});
}

// The new film: pictures in order, and a prompt for each pair of neighbours.

const pictures = [], prompts = [];
let sending = false;

function makePicture(file) {
  const node = copyOf("picture");
  const picture = {file, node, url: URL.createObjectURL(file), stored: ""};
  const [earlier, later, remove] = node.querySelectorAll("button");
  node.querySelector("img").src = picture.url;
  earlier.addEventListener("click", () => move(picture, -1, earlier));
  later.addEventListener("click", () => move(picture, 1, later));
  remove.addEventListener("click", () => takeOut(picture));
  return picture;
}

function makePrompt() {
  const node = copyOf("prompt");
  const text = node.querySelector("textarea");
  text.addEventListener("input", tellMissing);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
  });
  return {node, text};
}

async function addFiles(files) {
  const refused = [];
  await Promise.all([...files].map(async (file) => {
    if (file.size > LARGEST) return refused.push(`${file.name}: The picture is larger than 64 MB.`);
    if (pictures.length >= MOST) return refused.push(`${file.name}: A film has at most ${MOST} pictures.`);
    const picture = makePicture(file);
    pictures.push(picture);
    layOut();
    try {
      picture.stored = (await ask("/api/pictures", {method: "POST", body: file})).name;
      layOut();
    } catch (error) {
      takeOut(picture);
      refused.push(`${file.name}: ${error.message}`);
    }
  }));
  setText(byId("refusals"), refused.join("\n"));
}

function move(picture, by, button) {
  const from = pictures.indexOf(picture), to = from + by;
  [pictures[from], pictures[to]] = [pictures[to], pictures[from]];
  layOut();
  // At an end the pressed button is off; its twin keeps the keyboard on this picture.
  (button.disabled ? picture.node.querySelector("button:not(:disabled)") : button).focus();
  announce(`${picture.file.name} is picture ${to + 1} of ${pictures.length}.`);
}

function takeOut(picture) {
  const at = pictures.indexOf(picture);
  if (at < 0) return;
  const held = picture.node.contains(document.activeElement);
  pictures.splice(at, 1);
  prompts.splice(Math.min(at, prompts.length - 1), 1);
  URL.revokeObjectURL(picture.url);
  layOut();
  if (held) (pictures[Math.min(at, pictures.length - 1)]?.node.querySelector(".remove") || byId("files")).focus();
  announce(`${picture.file.name} is removed.`);
}

function layOut() {
  const focused = document.activeElement;
  while (prompts.length < pictures.length - 1) prompts.push(makePrompt());
  const rows = [];
  pictures.forEach((picture, at) => {
    const {node, file} = picture, [name, state] = node.querySelectorAll("p");
    const [earlier, later, remove] = node.querySelectorAll("button");
    setText(name, `${at + 1}. ${file.name}`);
    setText(state, picture.stored ? `${(file.size / 1e6).toFixed(1)} MB` : "Adding…");
    node.querySelector("img").alt = `Picture ${at + 1}`;
    earlier.disabled = at === 0;
    later.disabled = at === pictures.length - 1;
    earlier.setAttribute("aria-label", `Move picture ${at + 1} earlier`);
    later.setAttribute("aria-label", `Move picture ${at + 1} later`);
    remove.setAttribute("aria-label", `Remove picture ${at + 1}`);
    rows.push(node);
    if (at < pictures.length - 1) {
      setText(prompts[at].node.querySelector("span"), `Prompt from picture ${at + 1} to ${at + 2}`);
      rows.push(prompts[at].node);
    }
  });
  const board = byId("board");
  if (rows.length !== board.children.length || rows.some((row, at) => row !== board.children[at])) {
    board.replaceChildren(...rows);
    if (focused?.isConnected) focused.focus();
  }
  tellMissing();
}

function whatIsMissing() {
  if (pictures.length < FEWEST) return pictures.length ? "Add one more picture." : "Add two pictures or more.";
  if (pictures.some((picture) => !picture.stored)) return "The pictures are being added.";
  const empty = prompts.findIndex((prompt) => !prompt.text.value.trim());
  if (empty >= 0) return `Write the prompt from picture ${empty + 1} to ${empty + 2}.`;
  return sending ? "Sending…" : "";
}

function tellMissing() {
  const missing = whatIsMissing();
  setText(byId("missing"), missing && `To send: ${missing}`);
  byId("send").disabled = Boolean(missing);
  byId("clear").disabled = !pictures.length;
}

async function send(event) {
  event.preventDefault();
  if (whatIsMissing()) return;
  sending = true;
  tellMissing();
  try {
    await post("/api/jobs", {
      pictures: pictures.map((picture) => picture.stored),
      prompts: prompts.map((prompt) => prompt.text.value),
      watermark: byId("watermark").checked,
    });
    setText(byId("refusals"), "");
    await look();
  } catch (error) {
    setText(byId("refusals"), error.message);
  }
  sending = false;
  tellMissing();
  byId("send").focus();
}

async function addSamples() {
  const samples = await ask("/api/samples");
  const files = await Promise.all(samples.pictures.map(async (path) => {
    const picture = await (await fetch(path)).blob();
    return new File([picture], path.split("/").pop(), {type: picture.type});
  }));
  clear();
  await addFiles(files);
  samples.prompts.forEach((text, at) => { prompts[at].text.value = text; });
  tellMissing();
}

function clear() {
  pictures.forEach((picture) => URL.revokeObjectURL(picture.url));
  pictures.length = prompts.length = 0;
  setText(byId("refusals"), "");
  layOut();
}

// The films, newest first; what is there is changed in place, so that a film goes on playing.

const films = new Map();

function makeFilm(job) {
  const node = copyOf("film");
  node.id = job.id;
  setText(node.querySelector("h3"), job.title);
  const cancel = node.querySelector(".cancel");
  cancel.setAttribute("aria-label", `Cancel ${job.title}`);
  cancel.addEventListener("click", () => post(`/api/jobs/${job.id}/cancel`, {}).then(look));
  node.querySelector(".prompts").append(...job.prompts.map((text) => lined("li", text)));
  byId("films").prepend(node);
  return {node, told: ""};
}

function lined(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

function showFilm(job) {
  if (!films.has(job.id)) films.set(job.id, makeFilm(job));
  const film = films.get(job.id), {node} = film;
  node.dataset.state = job.state;
  setText(node.querySelector(".state"), STATES[job.state]);
  setText(node.querySelector(".words"), job.words);
  node.querySelector(".cancel").hidden = !["queued", "claimed"].includes(job.state);
  node.querySelector(".going").hidden = job.state !== "claimed";
  if (job.state === "claimed") showProgress(node, job);
  if (job.error) showError(node, job.error);
  if (job.film) showResult(node, job);
  const clip = job.progress?.clip ? `, clip ${job.progress.clip} of ${job.prompts.length}` : "";
  const news = `${job.title} is ${STATES[job.state]}${clip}. ${job.error?.message ?? ""}`;
  if (news !== film.told) announce(film.told = news);
}

function showProgress(node, job) {
  const now = {clip: 0, step: 0, steps: 0, percent: 0, etaSec: null, ...job.progress};
  const bar = node.querySelector("progress");
  bar.value = now.percent;
  bar.setAttribute("aria-label", `Progress of ${job.title}`);
  const left = now.etaSec === null ? "" : `, ${now.etaSec ? `about ${tellTime(now.etaSec)}` : "a moment"} left`;
  setText(node.querySelector(".numbers"), `${Math.floor(now.percent)} %${left}`);
  const list = node.querySelector(".clips");
  while (list.children.length < job.prompts.length) list.append(document.createElement("li"));
  [...list.children].forEach((item, at) => {
    const after = !["booting", "rendering"].includes(now.stage) && now.clip > 0;
    const state = at + 1 < now.clip || after ? "done" : at + 1 === now.clip ? "now" : "later";
    item.dataset.state = state;
    const words = {done: "rendered", now: `step ${now.step} of ${now.steps}`, later: "to come"};
    setText(item, `Clip ${at + 1}: ${words[state]}`);
  });
}

function tellTime(seconds) {
  return seconds < 90 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
}

function showError(node, error) {
  const place = node.querySelector(".error");
  place.hidden = false;
  if (!place.children.length) place.append(lined("span", error.message), lined("code", error.code));
}

function showResult(node, job) {
  const video = node.querySelector("video"), link = node.querySelector("a");
  node.querySelector(".done").hidden = false;
  if (!video.hasAttribute("src")) {
    video.src = link.href = job.film;
    video.setAttribute("aria-label", job.title);
    link.download = `${job.id}.mp4`;
  }
  const sheet = node.querySelector(".sheet");
  if (sheet.children.length || !job.stills.length) return;
  video.poster = job.stills[0];
  sheet.append(...job.stills.map((path, at) => {
    const figure = document.createElement("figure"), picture = document.createElement("img");
    const clip = Math.floor(at / job.shown.length) + 1;
    const caption = `Clip ${clip}, ${job.shown[at % job.shown.length]}`;
    picture.src = path;
    picture.alt = `${job.title}: ${caption}`;
    figure.append(picture, lined("figcaption", caption));
    return figure;
  }));
}

function showWorker(worker) {
  byId("worker").dataset.state = worker.state;
  setText(byId("worker"), worker.words);
}

async function look() {
  try {
    const {worker, renderer, jobs} = await ask("/api/state");
    showWorker(worker);
    setText(byId("renderer"), renderer);
    byId("none").hidden = jobs.length > 0;
    jobs.reverse().forEach(showFilm);
  } catch {
    showWorker({state: "down", words: "The studio does not answer. Is make sandbox still running?"});
  }
}

async function keepLooking() {
  await look();
  setTimeout(keepLooking, EVERY_MS);
}

byId("form").addEventListener("submit", send);
byId("clear").addEventListener("click", clear);
byId("samples").addEventListener("click", addSamples);
byId("files").addEventListener("change", (event) => {
  addFiles([...event.target.files]);
  event.target.value = "";
});
for (const kind of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", kind === "dragover");
    if (kind === "drop") addFiles(event.dataTransfer.files);
  });
}
tellMissing();
keepLooking();
