"use strict";
// Live curves: asks for what was logged after the last byte seen, draws an SVG. Texts are set as text, never as HTML.
(function () {
  const box = document.getElementById("curves");
  if (!box) return;
  const SPACE = "http://www.w3.org/2000/svg", WIDE = 900, HIGH = 300, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 26;
  const seen = { train: new Map(), validation: new Map() };
  let offset = 0;

  function add(parent, name, facts, text) {
    const made = document.createElementNS(SPACE, name);
    for (const key in facts) made.setAttribute(key, String(facts[key]));
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  function ordered(points) {
    return Array.from(points.entries()).sort((a, b) => a[0] - b[0]);
  }

  function smooth(points) {
    const span = Math.max(1, Math.floor(points.length / 60));
    return points.map((point, at) => {
      const part = points.slice(Math.max(0, at - span), at + span + 1);
      return [point[0], part.reduce((sum, one) => sum + one[1], 0) / part.length];
    });
  }

  function draw() {
    const train = smooth(ordered(seen.train)), validation = ordered(seen.validation);
    const all = train.concat(validation);
    if (!all.length) return;
    const most = Math.max(1, ...all.map((p) => p[0]));
    let low = Math.min(...all.map((p) => p[1])), high = Math.max(...all.map((p) => p[1]));
    if (high - low < 1e-9) { high += 0.5; low -= 0.5; }
    const x = (step) => LEFT + (WIDE - LEFT - RIGHT) * step / most;
    const y = (loss) => TOP + (HIGH - TOP - BOTTOM) * (high - loss) / (high - low);
    const picture = document.createElementNS(SPACE, "svg");
    picture.setAttribute("viewBox", "0 0 " + WIDE + " " + HIGH);
    picture.setAttribute("role", "img");
    for (let i = 0; i <= 4; i++) {
      const loss = low + (high - low) * i / 4, step = Math.round(most * i / 4);
      add(picture, "line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(loss), y2: y(loss), class: "grid" });
      add(picture, "text", { x: LEFT - 6, y: y(loss) + 4, "text-anchor": "end" }, loss.toPrecision(3));
      add(picture, "text", { x: x(step), y: HIGH - 8, "text-anchor": "middle" }, String(step));
    }
    for (const [name, points] of [["train", train], ["validation", validation]]) {
      const path = points.map((p) => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1)).join(" ");
      if (points.length) add(picture, "polyline", { points: path, class: name });
    }
    if (validation.length) {
      const best = validation.reduce((a, b) => (b[1] < a[1] ? b : a));
      add(picture, "circle", { cx: x(best[0]), cy: y(best[1]), r: 4, class: "best" });
    }
    box.replaceChildren(picture);
  }

  function take(found) {
    offset = found.offset;
    for (const name of ["train", "validation"]) for (const [step, loss] of found[name]) seen[name].set(step, loss);
    const live = document.getElementById("live"), speed = found.live.tokens_per_s;
    if (speed && found.state === "running") live.textContent = Math.round(speed) + " " + box.dataset.speed;
    for (const text of found.warnings) {
      const line = document.createElement("li");
      line.textContent = text;
      document.getElementById("warnings").appendChild(line);
    }
    draw();
  }

  async function ask() {
    let wait = 2000;
    try {
      const answer = await fetch(box.dataset.events + "?after=" + offset);
      if (answer.ok) {
        const found = await answer.json();
        take(found);
        if (found.more) wait = 0;
        else if (found.state !== "running") {
          if (box.dataset.running) location.reload();
          return;
        } else box.dataset.running = "yes";
      }
    } catch (error) {
      wait = 10000;
    }
    setTimeout(ask, wait);
  }

  ask();
})();
