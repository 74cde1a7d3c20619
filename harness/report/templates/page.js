"use strict";
(() => {
  // On paper nothing can be opened: what is marked is opened for printing and closed again.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details[data-print]:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });

  const store = document.getElementById("token-data");
  if (!store) return;
  const choice = document.getElementById("token-target");
  const legend = document.getElementById("token-legend");
  const tip = document.getElementById("tip");
  const measures = {
    implementation: { name: "implementation", unit: "logits", steps: [0.25, 0.5, 1, 10], of: "of the limit" },
    kl: { name: "KL", unit: "nat", steps: [1e-4, 1e-3, 1e-2, 1e-1], of: "nat" },
    quantisation: { name: "quantisation", unit: "logits", steps: [1e-3, 1e-2, 1e-1, 1], of: "logits" },
  };
  const folds = [...document.querySelectorAll("details[data-prompt]")];
  const details = new Map();
  let data = null;

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const measure = () => document.querySelector("input[name=token-measure]:checked").value;
  const spell = (value) => {
    if (value === null || value === undefined) return "not finite";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(2))) : value.toExponential(1);
  };
  const visible = (word) => (word === "" ? "∅" : word.replace(/\n/g, "↵"));

  async function load() {
    const bytes = Uint8Array.from(atob(store.textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    data = JSON.parse(await new Response(stream).text());
    for (const [target, prompt, detail] of data.details) details.set(`${target}/${prompt}`, detail);
  }

  // A number for the colour of a position, from 0 to 4, and whether it is beyond its limit or not finite.
  function judge(detail, row, decode) {
    const kind = measure();
    const values = detail[kind];
    if (!values || row < 0 || row >= values.length) return null;
    if (values[row] === null) return { level: 4, beyond: true, broken: true };
    const limit = kind === "implementation" ? detail.beyond[decode ? "decode" : "prefill"] : detail.beyond[kind];
    const scaled = kind === "implementation" ? values[row] / limit : values[row];
    const level = measures[kind].steps.filter((step) => scaled >= step).length;
    return { level: Number.isFinite(scaled) ? level : 0, beyond: values[row] > limit, broken: false };
  }

  function fill(fold) {
    const number = Number(fold.dataset.prompt);
    const prompt = data.prompts[number];
    const target = choice.selectedOptions[0].textContent;
    const detail = details.get(`${choice.value}/${number}`);
    const [asked, answered] = fold.querySelectorAll(".tokens");
    fold.querySelector(".token-note").textContent = detail ? "" : `${target} gave nothing to compare for this prompt.`;
    asked.replaceChildren();
    answered.replaceChildren();
    prompt.tokens.forEach((token, position) => {
      const word = data.words[token];
      const element = make("span", "tok", visible(word) + (word.includes("\n") ? "\n" : ""));
      element.dataset.position = position;
      element.setAttribute("role", "button");
      element.tabIndex = position === 0 || position === prompt.prefill ? 0 : -1;
      if (!word.trim()) element.setAttribute("aria-label", word.includes("\n") ? "new line" : word ? "space" : "empty token");
      if (/^<\|.*\|>$/.test(word)) element.classList.add("special");
      const row = detail ? position - detail.first : -1;
      const judged = detail && judge(detail, row, position >= prompt.prefill);
      if (judged) {
        if (judged.level) element.classList.add(judged.broken ? "not-finite" : `heat-${judged.level}`);
        if (judged.beyond) element.classList.add("beyond");
      }
      if (row >= 0 && detail.top && detail.top[row] && detail.top[row][0] !== prompt.top[position][0]) {
        element.classList.add("other-top");
      }
      (position < prompt.prefill ? asked : answered).append(element);
    });
  }

  function draw() {
    const { steps, of } = measures[measure()];
    const words = of === "of the limit" ? ["from ¼ of the limit", "from ½", "beyond it", "10 × and more"] : steps.map((step) => `from ${spell(step)} ${of}`);
    legend.replaceChildren(
      make("li", "on-paper", `${choice.selectedOptions[0].textContent}, ${measures[measure()].name}:`),
      ...words.map((text, at) => {
        const item = make("li");
        item.append(make("span", `tok swatch heat-${at + 1}${of === "of the limit" && at > 1 ? " beyond" : ""}`, "token"), ` ${text}`);
        return item;
      }),
    );
    const other = make("li");
    other.append(make("span", "tok swatch other-top", "token"), " another token is likeliest");
    legend.append(other);
    hide();
    for (const fold of folds) if (fold.open) fill(fold);
  }

  // The tip: what golden and device expect after a token.
  let shown = null;
  let leaving = 0;

  function column(title, tops, shares) {
    const box = make("div");
    box.append(make("b", "", title));
    if (!tops) box.append(make("span", "muted", "no likeliest tokens here"));
    (tops || []).forEach((token, at) => {
      const line = make("div", "top");
      const share = shares[at];
      line.style.setProperty("--share", share === null ? "0%" : `${share / 100}%`);
      line.append(make("span", "", visible(data.words[token])), make("span", "", share === null ? "?" : `${(share / 100).toFixed(share > 9949 ? 2 : 1)} %`));
      box.append(line);
    });
    return box;
  }

  function describe(element) {
    const number = Number(element.closest("details").dataset.prompt);
    const prompt = data.prompts[number];
    const position = Number(element.dataset.position);
    const detail = details.get(`${choice.value}/${number}`);
    const row = detail ? position - detail.first : -1;
    const has = (name) => detail && detail[name] && row >= 0 && row < detail[name].length;
    const part = position < prompt.prefill ? "prompt" : "answer";
    const head = make("p");
    head.append("After ", make("code", "", `“${visible(data.words[prompt.tokens[position]])}”`), `, position ${position} of ${prompt.tokens.length} (${part})`);
    const tops = make("div", "tops");
    tops.append(
      column("golden", prompt.top[position], prompt.p[position]),
      column(choice.selectedOptions[0].textContent, has("top") ? detail.top[row] : null, has("top") ? detail.p[row] : null),
    );
    const figures = [];
    if (has("kl")) figures.push(`KL ${spell(detail.kl[row])} nat`);
    if (has("quantisation")) figures.push(`quantisation ${spell(detail.quantisation[row])} logits`);
    if (has("implementation")) {
      const times = has("yardstick") && detail.yardstick[row] ? ` (${spell(detail.implementation[row] / detail.yardstick[row])} × yardstick)` : "";
      figures.push(`implementation ${spell(detail.implementation[row])} logits${detail.implementation[row] === null ? "" : times}`);
    }
    const next = position + 1 < prompt.tokens.length ? `Next in the text: “${visible(data.words[prompt.tokens[position + 1]])}”. ` : "";
    const margin = `The golden prefers its first by ${spell(prompt.margins[position])} logits.`;
    tip.replaceChildren(head, tops, make("p", "", figures.join(" · ")), make("p", "muted", next + margin));
  }

  function show(element) {
    clearTimeout(leaving);
    if (shown === element && !tip.hidden) return;
    if (shown) shown.removeAttribute("aria-describedby");
    shown = element;
    describe(element);
    element.setAttribute("aria-describedby", "tip");
    tip.hidden = false;
    const at = element.getClientRects()[0];
    const size = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - size.width - 8));
    const below = at.bottom + 6 + size.height < innerHeight;
    tip.style.left = `${left}px`;
    tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)}px`;
  }

  function hide() {
    clearTimeout(leaving);
    tip.hidden = true;
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
  }

  function later() {
    clearTimeout(leaving);
    leaving = setTimeout(() => {
      const focused = document.activeElement;
      if (focused && focused.classList.contains("tok")) show(focused);
      else hide();
    }, 150);
  }

  // The token above or below, nearest to where this one begins.
  function across(tokens, from, down) {
    const rectangle = (one) => one.getClientRects()[0];
    const here = rectangle(from);
    const beyond = tokens.filter((one) => (down ? rectangle(one).top > here.top + 4 : rectangle(one).top < here.top - 4));
    const distance = (one) => 1000 * Math.abs(rectangle(one).top - here.top) + Math.abs(rectangle(one).left - here.left);
    return beyond.sort((one, two) => distance(one) - distance(two))[0];
  }

  function move(event) {
    if (event.key === "Escape") return hide();
    const token = event.target.closest(".tok");
    if (!token) return undefined;
    const tokens = [...token.parentElement.querySelectorAll(".tok")];
    const at = tokens.indexOf(token);
    const next = {
      ArrowRight: tokens[at + 1], ArrowLeft: tokens[at - 1], Home: tokens[0], End: tokens[tokens.length - 1],
      ArrowDown: event.key === "ArrowDown" ? across(tokens, token, true) : null,
      ArrowUp: event.key === "ArrowUp" ? across(tokens, token, false) : null,
      Enter: token, " ": token,
    }[event.key];
    if (event.key.startsWith("Arrow") || ["Home", "End", "Enter", " "].includes(event.key)) event.preventDefault();
    if (!next) return undefined;
    for (const one of tokens) one.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    show(next);
    return undefined;
  }

  load().then(() => {
    for (const fold of folds) fold.addEventListener("toggle", () => fold.open && fill(fold));
    choice.addEventListener("change", draw);
    for (const input of document.querySelectorAll("input[name=token-measure]")) input.addEventListener("change", draw);
    const area = document.getElementById("prompts");
    const over = (event, act) => {
      const token = event.target.closest(".tokens .tok");
      if (token) act(token);
    };
    area.addEventListener("pointerover", (event) => event.pointerType !== "touch" && over(event, show));
    area.addEventListener("pointerout", (event) => event.pointerType !== "touch" && over(event, later));
    area.addEventListener("focusin", (event) => over(event, show));
    area.addEventListener("focusout", later);
    area.addEventListener("click", (event) => over(event, (token) => token.focus()));
    area.addEventListener("keydown", move);
    addEventListener("keydown", (event) => event.key === "Escape" && hide());
    addEventListener("scroll", () => shown && document.activeElement !== shown && hide(), { passive: true });
    tip.addEventListener("pointerenter", () => clearTimeout(leaving));
    tip.addEventListener("pointerleave", later);
    document.getElementById("token-controls").hidden = false;
    draw();
    document.documentElement.dataset.ready = "";
  }, () => {
    document.getElementById("token-failed").hidden = false;
  });
})();
