"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const slider = document.getElementById("step");
  const steps = data.steps ?? []; // fewer than were measured where the page would be too large
  if (slider) {
    slider.max = steps.length - 1;
    slider.value = slider.max;
  }
  const maps = new Map();

  const without = "no step";
  const current = (map) => {
    const own = Object.keys(map.steps);
    return slider && !(own.length === 1 && own[0] === without) ? steps[Number(slider.value)] : own.pop();
  };
  const named = (step) => (step === without ? step : `step ${step}`);

  function colour(value, map) {
    if (value === null || value === undefined) return "var(--empty)";
    const share = (value - map.low) / (map.high - map.low);
    const last = data.colours.length - 1;
    return data.colours[Math.min(last, Math.max(0, Math.round(share * last)))];
  }

  function paint(entry) {
    const step = current(entry.map);
    const values = entry.map.steps[step];
    entry.cells.forEach((cell, place) => {
      cell.style.fill = colour(values ? values[place] : null, entry.map);
    });
    if (entry.caption) entry.caption.textContent = values ? named(step) : `nothing measured at ${named(step)}`;
  }

  function describe(entry, place) {
    const { map } = entry;
    const step = current(map);
    const values = map.steps[step];
    const layer = map.layers[Math.floor(place / map.timesteps.length)];
    const time = map.timesteps[place % map.timesteps.length];
    const value = values ? values[place] : null;
    const text = value === null ? "no value" : String(Number(value.toPrecision(4)));
    return [`${map.metric} ${text}`, `${map.arm}, ${named(step)}, block ${layer}, t = ${time}`];
  }

  function show(entry, place, box) {
    const [head, rest] = describe(entry, place);
    const strong = document.createElement("strong");
    strong.textContent = head;
    tip.replaceChildren(strong, document.createElement("br"), rest);
    tip.hidden = false;
    const width = tip.offsetWidth;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), document.documentElement.clientWidth - width - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 0 ? above : box.bottom + 8}px`;
  }

  function hide() {
    tip.hidden = true;
  }

  for (const map of data.maps ?? []) {
    const box = document.querySelector(`[data-map="${map.key}"]`);
    const entry = { map, cells: [...box.querySelectorAll(".cell")], caption: box.parentElement.querySelector("figcaption") };
    maps.set(map.key, entry);
    entry.cells.forEach((cell, place) => {
      cell.addEventListener("pointerenter", () => show(entry, place, cell.getBoundingClientRect()));
      cell.addEventListener("pointerdown", () => show(entry, place, cell.getBoundingClientRect()));
      cell.addEventListener("pointerleave", hide);
    });
  }
  addEventListener("scroll", hide, { passive: true });

  if (slider) {
    const output = document.getElementById("step-value");
    slider.addEventListener("input", () => {
      const step = steps[Number(slider.value)];
      output.textContent = step;
      slider.setAttribute("aria-valuetext", named(step));
      maps.forEach(paint);
    });
  }
})();
