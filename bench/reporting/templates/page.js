// Puts DataTables and plotly to work on the page. Texts of the data reach the page as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function themed(layout) {
  const ink = getComputedStyle(document.documentElement);
  const text = ink.getPropertyValue("--text").trim(), line = ink.getPropertyValue("--line").trim();
  const box = ink.getPropertyValue("--box").trim();
  const themedLayout = {
    ...layout, font: { color: text, size: 12 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { namelength: -1, bgcolor: box, font: { color: text } }, modebar: { bgcolor: "rgba(0,0,0,0)", color: text },
  };
  for (const key of Object.keys(layout).filter((name) => /^[xy]axis/.test(name)))
    themedLayout[key] = { gridcolor: line, zerolinecolor: line, automargin: true, ...layout[key] };
  return themedLayout;
}

function draw(element) {
  if (element.classList.contains("drawn")) return;
  element.classList.add("drawn");
  const { traces, layout } = data.plots[element.dataset.plot];
  Plotly.newPlot(element, traces, themed(withLegend(traces, layout, element.clientWidth)), OPTIONS);
}

// Legends below a figure take room of their own: the axes keep their height however many arms there are.
function withLegend(traces, layout, width) {
  const names = traces.filter((trace) => trace.name && trace.showlegend !== false).map((trace) => trace.name);
  const across = Math.max(1, Math.floor((width - 40) / (Math.max(0, ...names.map((name) => name.length)) * 6.5 + 50)));
  const lines = layout.showlegend === false ? 0 : Math.ceil(names.length / across);
  return { ...layout, height: layout.height + 19 * Math.max(0, lines - 2) };
}

const PAPER = 980; // CSS pixels between the margins of a page in landscape, A4 or Letter
const OPTIONS = { responsive: true, displaylogo: false, displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false };
const plots = [...document.querySelectorAll(".plot[data-plot]")];
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, { rootMargin: "300px" });
plots.forEach((element) => seen.observe(element));

function paint() {
  document.documentElement.classList.toggle("dark", dark.matches);
  for (const element of document.querySelectorAll(".plot.drawn")) {
    const { traces, layout } = data.plots[element.dataset.plot] ?? { traces: [], layout: element.own };
    Plotly.relayout(element, themed(withLegend(traces, layout, element.clientWidth)));
  }
}
dark.addEventListener("change", paint);
paint();

function cellOf(tag, text, name) {
  const element = document.createElement(tag);
  element.textContent = text ?? "";
  if (name) element.className = name;
  return element;
}

function details(cell) {
  const box = document.createElement("div");
  box.className = "details";
  box.append(cellOf("p", cell.title, "small"));
  for (const note of cell.notes) box.append(cellOf("p", note, "note"));
  const scroll = box.appendChild(cellOf("div", "", "scroll"));
  const table = scroll.appendChild(document.createElement("table"));
  const head = table.createTHead().insertRow();
  data.run_columns.forEach(([title, align]) => head.append(cellOf("th", title, align)));
  const body = table.createTBody();
  for (const run of cell.runs) {
    const row = body.insertRow();
    run.values.forEach((value, i) => row.append(cellOf("td", value, data.run_columns[i][1])));
  }
  const curves = cell.runs.filter((run) => run.curve);
  if (curves.length) {
    const plot = box.appendChild(cellOf("div", "", "plot drawn"));
    plot.own = {
      height: 280, margin: { t: 10, r: 10 }, hovermode: "x unified",
      xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: "test accuracy, %" } },
    };
    const traces = curves.map((run) => ({
      x: run.curve[0], y: run.curve[1], name: "seed " + run.values[0], mode: "lines", line: { width: 1.2 },
    }));
    requestAnimationFrame(() => Plotly.newPlot(plot, traces, themed(plot.own), OPTIONS));
  }
  return box;
}

const source = Uint8Array.from(atob(document.getElementById("datatables").textContent), (c) => c.charCodeAt(0));
const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
const { default: DataTable } = await import(address);
URL.revokeObjectURL(address);

for (const element of document.querySelectorAll("table.rich")) {
  const rows = element.tBodies[0].rows.length;
  const tuning = [...element.tHead.rows[0].cells].findIndex((cell) => cell.textContent === "Tuning");
  const tunedOnly = {
    text: "Tuned only",
    action: (event, table, node) => {
      const all = table.column(tuning).search() === "";
      table.column(tuning).search(all ? "^tuned$" : "", true, false).draw();
      table.button(node).text(all ? "Untuned too" : "Tuned only");
    },
  };
  const table = new DataTable(element, {
    language: { searchBuilder: { button: { 0: "Filter", _: "Filter (%d)" }, title: { 0: "Rows that meet", _: "Rows that meet (%d)" } } },
    order: [], autoWidth: false, paging: rows > 60, pageLength: 50,
    layout: {
      topStart: rows > 3 ? { buttons: tuning < 0 ? ["searchBuilder"] : ["searchBuilder", tunedOnly] } : null,
      topEnd: rows > 3 ? "search" : null,
      bottomStart: rows > 3 ? "info" : null, bottomEnd: rows > 60 ? "paging" : null,
    },
  });
  element.tBodies[0].addEventListener("click", (event) => {
    const line = event.target.closest("tr[data-cell]");
    if (!line || getSelection().toString()) return;
    const row = table.row(line), button = line.querySelector("button.open");
    if (row.child.isShown()) row.child.hide();
    else row.child(details(data.cells[line.dataset.cell])).show();
    line.classList.toggle("shown", row.child.isShown());
    button?.setAttribute("aria-expanded", row.child.isShown());
  });
  addEventListener("beforeprint", () => rows > 60 && table.page.len(-1).draw());
}
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((element) => { element.open = true; });
  plots.forEach(draw);
  for (const element of document.querySelectorAll(".plot.drawn")) Plotly.relayout(element, { width: PAPER });
});
addEventListener("afterprint", () => {
  for (const element of document.querySelectorAll(".plot.drawn")) Plotly.relayout(element, { width: null, autosize: true });
});
document.documentElement.classList.add("ready");
