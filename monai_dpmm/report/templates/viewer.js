"use strict";
const scan = JSON.parse(document.getElementById("scan").textContent);
const nv = new niivue.Niivue({
  backColor: [0, 0, 0, 1], crosshairColor: [0.42, 0.77, 1, 1], crosshairWidth: 0.4, crosshairGap: 6,
  fontColor: [0.9, 0.92, 0.94, 1], isRadiologicalConvention: true, sagittalNoseLeft: true,
  multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID, multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS, show3Dcrosshair: true, tileMargin: 2,
  dragAndDropEnabled: false, loadingText: "", logLevel: "error",
  viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
});
const element = (id) => document.getElementById(id);
const layers = {};
let current = 0;

function say(text) { element("value").textContent = text; }

function shown(location) {
  const [x, y, z] = Array.from(location.mm, (mm) => `${Math.abs(mm).toFixed(0)} mm `);
  const side = (value, name, plus, minus) => name + (value < 0 ? minus : plus);
  const parts = [side(location.mm[0], x, "right", "left"), side(location.mm[1], y, "anterior", "posterior"),
    side(location.mm[2], z, "superior", "inferior")];
  const value = Object.fromEntries(location.values.map((one) => [one.name.split(".")[0], one.value]));
  parts.push(`score ${value.anomaly.toPrecision(3)}`, `intensity ${value.image.toPrecision(4)}`);
  if (value.components) parts.push(`prototype ${value.components}`);
  for (const name of ["mask", "label"]) if (value[name] > 0) parts.push(`in the ${name}`);
  say(parts.join(" · "));
}

function go(rank) {
  const finding = scan.findings[rank - 1];
  if (!finding) return;
  current = rank;
  document.querySelectorAll("[data-finding]").forEach((row) => {
    row.setAttribute("aria-current", String(Number(row.dataset.finding) === rank));
  });
  place(finding.peak_mm);
}

function place(mm) {
  nv.scene.crosshairPos = nv.mm2frac(mm, 0, true);  // in world space, also of oblique grids
  nv.createOnLocationChange();
  nv.drawScene();
}

function update() {
  for (const box of document.querySelectorAll("[data-layer]")) {
    const layer = layers[box.dataset.layer];
    const full = { image: 1, anomaly: Number(element("opacity").value) }[box.dataset.layer] ?? 0.35;
    layer.opacity = box.checked ? full : 0;
  }
  layers.anomaly.cal_min = Number(element("threshold").value);
  layers.anomaly.cal_max = Math.max(scan.heat[1], layers.anomaly.cal_min + 1e-6);
  layers.image.cal_min = Number(element("black").value);
  layers.image.cal_max = Math.max(Number(element("white").value), layers.image.cal_min + 1e-6);
  for (const output of document.querySelectorAll("output")) {
    output.textContent = Number(Number(element(output.htmlFor.value).value).toPrecision(3));
  }
  nv.updateGLVolume();
}

function keys(event) {
  const slider = event.target.type === "range" && /^(Arrow|Page)/.test(event.key);
  if (event.ctrlKey || event.metaKey || event.altKey || slider || event.target.tagName === "SELECT") return;
  const turn = (step) => go((current - 1 + step + scan.findings.length) % scan.findings.length + 1);
  const actions = {
    n: () => turn(1), p: () => turn(-1),
    PageDown: () => element("following").click(), PageUp: () => element("previous").click(),
    h: () => document.querySelector("[data-layer=anomaly]").click(),
    v: () => {
      element("slices").selectedIndex = (element("slices").selectedIndex + 1) % 5;
      element("slices").dispatchEvent(new Event("change"));
    },
    ArrowLeft: () => nv.moveCrosshairInVox(1, 0, 0), ArrowRight: () => nv.moveCrosshairInVox(-1, 0, 0),
    ArrowUp: () => nv.moveCrosshairInVox(0, 1, 0), ArrowDown: () => nv.moveCrosshairInVox(0, -1, 0),
  };
  if (!actions[event.key]) return;
  event.preventDefault();
  event.stopPropagation();
  actions[event.key]();
}

function neighbours() {
  const pages = globalThis.scans || [];
  const here = pages.indexOf(decodeURIComponent(location.pathname).split("/").pop());
  for (const [id, page] of [["previous", pages[here - 1]], ["following", pages[here + 1]]]) {
    if (here < 0 || !page) continue;
    element(id).href = page;
    element(id).hidden = false;
  }
}

async function open() {
  neighbours();
  const canvas = element("canvas");
  if (!canvas.getContext("webgl2")) throw new Error("this browser has no WebGL 2, which draws the scan");
  await nv.attachToCanvas(canvas);
  nv.addColormap("anomaly", scan.colors);
  for (const name of ["image", "anomaly", "mask", "label", "components"].filter((one) => scan.volumes[one])) {
    const base64 = scan.volumes[name];
    const volume = await niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz` });
    if (name === "anomaly") volume.colormap = "anomaly";
    else if (name !== "image") volume.setColormapLabel(scan.labels[name]);
    layers[name] = volume;
    nv.addVolume(volume);
  }
  nv.onLocationChange = shown;
  document.addEventListener("keydown", keys, true);
  document.querySelectorAll("aside input").forEach((input) => input.addEventListener("input", update));
  document.querySelectorAll("[data-finding]").forEach((row) => row.addEventListener("click", () => go(Number(row.dataset.finding))));
  element("slices").addEventListener("change", () => nv.setSliceType(Number(element("slices").value)));
  nv.onIntensityChange = (volume) => {
    element("black").value = volume.cal_min; element("white").value = volume.cal_max; update();
  };
  update();
  const linked = () => Number((/^#finding-(\d+)$/.exec(location.hash) || [])[1] || 0);
  addEventListener("hashchange", () => go(linked()));
  if (scan.findings.length) go(scan.findings[linked() - 1] ? linked() : 1); else place(scan.start);
  document.body.dataset.ready = "yes";
}

open().catch((error) => say(`The scan cannot be shown: ${error.message}. The figure in the report shows it.`));
