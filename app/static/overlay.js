const root = element.querySelector(".overlay");
const frame = root.querySelector(".frame");
const blend = root.querySelector("[name=blend]");
const both = root.querySelector("[name=both]");
const text = root.querySelector(".status");
const start = text.textContent;

function draw() {
  const value = props.value;
  root.dataset.state = value ? (value.problem ? "problem" : "ready") : "empty";
  frame.replaceChildren();
  text.textContent = value ? value.message : start;
  if (!value && root.offsetParent) trigger("refresh"); // outdated while it is looked at
  if (!value || value.problem) return;
  frame.style.setProperty("--ratio", value.width / value.height);
  for (const url of [value.source, both.checked ? value.both_ways : value.warped]) {
    const image = document.createElement("img");
    image.src = url;
    image.alt = "";
    frame.append(image);
  }
  fade();
}

function fade() {
  if (frame.lastChild) frame.lastChild.style.opacity = blend.value / 100;
}

blend.addEventListener("input", fade);
both.addEventListener("change", draw);
watch("value", draw);
