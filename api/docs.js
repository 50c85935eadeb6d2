// Shows /openapi.json. Text from the document enters the page as text nodes
// only, never as markup.
"use strict";

/** el makes an element; children are elements or text. */
function el(tag, attrs, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (k === "on") for (const [name, f] of Object.entries(v)) e.addEventListener(name, f);
    else if (v !== undefined) e.setAttribute(k, v);
  }
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
}

let doc;

/** resolve follows a reference to a schema. */
function resolve(s) {
  while (s && s.$ref) s = doc.components.schemas[s.$ref.split("/").pop()];
  return s || {};
}

function refName(s) {
  return s && s.$ref ? s.$ref.split("/").pop() : "";
}

/** typeText says in a few words what a schema allows. */
function typeText(s) {
  const r = resolve(s);
  const types = [].concat(r.type || "any").filter((t) => t !== "null");
  if (types[0] === "array") return "list of " + (refName(r.items) || typeText(r.items || {}));
  if (types[0] === "object" && r.additionalProperties && r.additionalProperties.type) return "map to " + r.additionalProperties.type;
  return refName(s) || types.join(" or ");
}

/** limits lists the rules of a schema. */
function limits(r) {
  const out = [];
  if (r.enum) out.push("one of " + r.enum.join(", "));
  if (r.minimum !== undefined) out.push("at least " + r.minimum);
  if (r.maximum !== undefined) out.push("at most " + r.maximum);
  if (r.default !== undefined) out.push("default " + r.default);
  return out.join("; ");
}

/** fieldTable describes the fields of an object, nested ones on demand. */
function fieldTable(s, depth) {
  const r = resolve(s);
  if ([].concat(r.type || "").includes("array")) return fieldTable(r.items, depth);
  if (!r.properties) return null;
  const rows = Object.entries(r.properties).map(([name, p]) => {
    const q = resolve(p);
    const inner = [].concat(q.type || "").includes("array") ? resolve(q.items) : q;
    const nested = inner.properties && depth < 4
      ? el("details", {}, el("summary", {}, "fields"), el("div", { class: "fields" }, fieldTable(inner, depth + 1)))
      : null;
    return el("tr", {},
      el("td", {}, el("code", {}, name), (r.required || []).includes(name) ? el("div", { class: "soft" }, "required") : null),
      el("td", {}, typeText(p)),
      el("td", {}, p.description || q.description || "", el("div", { class: "soft" }, limits(q)), nested));
  });
  return el("table", {},
    el("thead", {}, el("tr", {}, ...["Field", "Type", "Meaning"].map((t) => el("th", { scope: "col" }, t)))),
    el("tbody", {}, ...rows));
}

/** example makes a value of a schema from the examples in it. */
function example(s, depth = 0) {
  const r = resolve(s);
  if (r.examples && r.examples.length) return r.examples[0];
  if (r.example !== undefined) return r.example;
  const type = [].concat(r.type || "")[0];
  if (type === "object") {
    const out = {};
    if (depth > 4) return out;
    for (const [k, p] of Object.entries(r.properties || {})) out[k] = example(p, depth + 1);
    return out;
  }
  if (type === "array") return depth > 4 ? [] : [example(r.items || {}, depth + 1)];
  if (type === "integer" || type === "number") return r.minimum || 0;
  if (type === "boolean") return false;
  return type === "string" ? "" : {};
}

/** requestExample is a body that works as it is. */
function requestExample(op) {
  const json = op.requestBody && op.requestBody.content["application/json"];
  if (!json) return "";
  if (!json.schema || !Object.keys(json.schema).length) return '{"name": "Ada"}';
  const all = resolve(json.schema).properties || {};
  const body = {};
  if (all.name) body.name = "hello";
  if (all.runtime) body.runtime = "python";
  if (all.code) body.code = { files: { "main.py": "def handler(event, context):\n    return event\n" } };
  return JSON.stringify(Object.keys(body).length ? body : example(json.schema), null, 2);
}

function shellQuote(s) {
  return "'" + s.replaceAll("'", "'\\''") + "'";
}

/** curl is the call as a shell command. */
function curl(method, path, op, params, body) {
  const parts = ["curl"];
  if (method !== "get") parts.push("-X " + method.toUpperCase());
  for (const p of params) if (p.in === "header" && p.value) parts.push("-H " + shellQuote(p.name + ": " + p.value));
  const content = op.requestBody ? Object.keys(op.requestBody.content) : [];
  if (content.includes("application/json")) parts.push("-H 'Content-Type: application/json' -d " + shellQuote(body));
  else if (content.length) parts.push("-H 'Content-Type: application/gzip' --data-binary @code.tar.gz");
  parts.push(shellQuote(location.origin + fill(path, params)));
  return parts.join(" \\\n  ");
}

/** fill puts parameters into a path. */
function fill(path, params) {
  const query = new URLSearchParams();
  for (const p of params) {
    if (p.in === "path") path = path.replace("{" + p.name + "}", encodeURIComponent(p.value));
    if (p.in === "query" && p.value) query.set(p.name, p.value);
  }
  const q = query.toString();
  return q ? path + "?" + q : path;
}

/** tryIt is the form that makes the call. */
function tryIt(method, path, op, id) {
  const params = (op.parameters || []).map((p) => ({
    name: p.name, in: p.in, value: p.in === "path" ? String(p.example || resolve(p.schema).examples?.[0] || "1") : "",
  }));
  const content = op.requestBody ? Object.keys(op.requestBody.content) : [];
  const binary = content.length > 0 && !content.includes("application/json");
  let body = requestExample(op);
  let file = null;
  const command = el("pre", {});
  const refresh = () => { command.textContent = curl(method, path, op, params, body); };
  refresh();

  const inputs = params.map((p) => {
    const name = id + "-" + p.name;
    const input = el("input", { id: name, value: p.value, autocomplete: "off", on: { input: () => { p.value = input.value; refresh(); } } });
    return el("div", {}, el("label", { for: name }, p.name + " ", el("span", { class: "soft" }, "(" + p.in + ")")), input);
  });
  let bodyInput = null;
  if (binary) {
    bodyInput = el("input", { id: id + "-body", type: "file", on: { change: () => { file = bodyInput.files[0]; } } });
  } else if (content.length) {
    bodyInput = el("textarea", { id: id + "-body", spellcheck: "false", on: { input: () => { body = bodyInput.value; refresh(); } } });
    bodyInput.value = body;
  }
  const output = el("pre", { role: "status", hidden: "" });
  const send = el("button", { type: "button" }, "Send");
  const stop = el("button", { type: "button", disabled: "" }, "Stop");
  send.addEventListener("click", async () => {
    const abort = new AbortController();
    stop.onclick = () => abort.abort();
    send.disabled = true;
    stop.disabled = false;
    output.hidden = false;
    output.textContent = "…";
    try {
      const headers = {};
      for (const p of params) if (p.in === "header" && p.value) headers[p.name] = p.value;
      let payload;
      if (binary) {
        payload = file;
        const name = file ? file.name : "";
        headers["Content-Type"] = name.endsWith(".zip") ? "application/zip" : name.endsWith(".tar") ? "application/x-tar" : "application/gzip";
      } else if (content.length) {
        payload = body;
        headers["Content-Type"] = "application/json";
      }
      const resp = await fetch(fill(path, params), { method: method.toUpperCase(), headers, body: payload, signal: abort.signal });
      await show(resp, output);
    } catch (err) {
      output.append(abort.signal.aborted ? "\n(stopped)" : "\nNo answer: " + err.message);
    } finally {
      send.disabled = false;
      stop.disabled = true;
    }
  });
  return el("details", {}, el("summary", {}, "Try it"),
    ...inputs,
    bodyInput ? el("div", {}, el("label", { for: id + "-body" }, "body"), bodyInput) : null,
    el("h4", {}, "As a command"), command, send, stop, output);
}

/** show writes an answer as it comes. */
async function show(resp, output) {
  const heads = ["etag", "location", "hearth-error", "hearth-start", "hearth-invocation-id", "server-timing"]
    .filter((h) => resp.headers.has(h)).map((h) => h + ": " + resp.headers.get(h));
  const top = [resp.status + " " + resp.statusText, ...heads].join("\n") + "\n\n";
  output.textContent = top;
  if ((resp.headers.get("content-type") || "").includes("json")) {
    const text = await resp.text();
    try {
      output.append(JSON.stringify(JSON.parse(text), null, 2));
    } catch {
      output.append(text);
    }
    return;
  }
  if (!resp.body) return;
  const reader = resp.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    output.append(value);
  }
}

function paramTable(op) {
  if (!op.parameters || !op.parameters.length) return null;
  const rows = op.parameters.map((p) => el("tr", {},
    el("td", {}, el("code", {}, p.name), p.required ? el("div", { class: "soft" }, "required") : null),
    el("td", {}, p.in),
    el("td", {}, typeText(p.schema || {})),
    el("td", {}, p.description || "", el("div", { class: "soft" }, limits(resolve(p.schema))))));
  return el("table", {},
    el("thead", {}, el("tr", {}, ...["Name", "In", "Type", "Meaning"].map((t) => el("th", { scope: "col" }, t)))),
    el("tbody", {}, ...rows));
}

function answers(op) {
  return Object.entries(op.responses).sort().map(([status, r]) => {
    const types = Object.entries(r.content || {});
    return el("div", {},
      el("h4", {}, (status === "default" ? "Errors" : status) + " ", el("span", { class: "soft" }, types.map(([t]) => t).join(", "))),
      r.description ? el("div", { class: "soft" }, r.description) : null,
      types.length ? el("details", {}, el("summary", {}, "fields"), ...types.slice(0, 1).map(([, m]) => fieldTable(m.schema, 0) || typeText(m.schema || {}))) : null);
  });
}

function operation(method, path, op) {
  const id = op.operationId;
  const bodies = op.requestBody ? Object.entries(op.requestBody.content) : [];
  const fields = bodies.length ? fieldTable(bodies[0][1].schema, 0) : null;
  return el("section", { id, "data-text": (method + " " + path + " " + op.summary).toLowerCase() },
    el("h3", {}, op.summary),
    el("div", { class: "path" }, el("span", { class: "method " + method }, method.toUpperCase()), " ", path),
    op.description ? el("p", {}, op.description) : null,
    op.parameters && op.parameters.length ? el("h4", {}, "Parameters") : null, paramTable(op),
    bodies.length ? el("h4", {}, "Body: " + bodies.map(([t]) => t).join(", ")) : null,
    op.requestBody && op.requestBody.description ? el("p", {}, op.requestBody.description) : null,
    fields, ...answers(op), tryIt(method, path, op, id));
}

function render() {
  const main = document.getElementById("main");
  const index = document.getElementById("index");
  main.replaceChildren(el("h2", {}, doc.info.title + " " + doc.info.version), el("p", {}, doc.info.description || ""));
  for (const tag of doc.tags || []) {
    const links = [];
    const sections = [];
    for (const [path, item] of Object.entries(doc.paths)) {
      for (const method of ["get", "post", "put", "delete"]) {
        const op = item[method];
        if (!op || !(op.tags || []).includes(tag.name)) continue;
        sections.push(operation(method, path, op));
        links.push(el("li", { "data-for": op.operationId },
          el("a", { href: "#" + op.operationId }, el("span", { class: "method " + method }, method.toUpperCase()), op.summary)));
      }
    }
    index.append(el("div", { class: "tag" }, el("h2", {}, tag.name), el("ul", {}, ...links)));
    main.append(el("div", { class: "tag" }, el("h2", {}, tag.name), el("p", { class: "soft" }, tag.description || ""), ...sections));
  }
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

document.getElementById("filter").addEventListener("input", (e) => {
  const words = e.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const section of document.querySelectorAll("section")) {
    const hit = words.every((w) => section.dataset.text.includes(w));
    section.hidden = !hit;
    document.querySelector('li[data-for="' + section.id + '"]').hidden = !hit;
  }
  for (const tag of document.querySelectorAll(".tag")) {
    tag.hidden = !tag.querySelector("section:not([hidden]), li:not([hidden])");
  }
});

fetch("/openapi.json")
  .then((r) => (r.ok ? r.json() : r.json().then((p) => Promise.reject(new Error(p.detail)))))
  .then((d) => { doc = d; render(); })
  .catch((err) => { document.getElementById("status").textContent = "The description of the API cannot be shown: " + err.message; });
