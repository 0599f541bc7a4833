"""The frame of the page: its style, its text and its script."""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title><style>
body { margin: 0 auto; max-width: 1240px; padding: 16px; font: 15px/1.45 system-ui, sans-serif; color: #1c2127;
  background: #fff; }
h1 { font-size: 24px; margin: 8px 0 0; overflow-wrap: anywhere; } h2 { font-size: 19px; margin: 36px 0 6px; }
p { margin: 6px 0; max-width: 110ch; } code { background: #f0f2f4; padding: 1px 4px; border-radius: 3px;
  overflow-wrap: anywhere; }
.numbers { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0; }
.numbers div { flex: 1 1 90px; background: #f4f6f8; border-radius: 6px; padding: 8px 12px; color: #57606a; }
.numbers b { display: block; font-size: 24px; color: #1c2127; }
.notes { background: #fff7e0; border-radius: 6px; padding: 10px 10px 10px 28px; } .notes:empty { display: none; }
.scroll { overflow: auto; border: 1px solid #e3e6e9; border-radius: 6px; margin: 10px 0; }
.tall { max-height: 560px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; text-align: left; border-bottom: 1px solid #eceef0; }
thead th { background: #f4f6f8; font-weight: 600; position: sticky; top: 0; z-index: 1; white-space: nowrap; }
.errors { width: 100%; } .errors tbody th { white-space: nowrap; } .errors td { vertical-align: top; }
.errors .n { text-align: right; } .bar { width: 110px; min-width: 60px; }
.bar div { background: #d55e00; height: 12px; margin-top: 5px; } .advice { min-width: 200px; color: #57606a; }
.classes { width: 100%; font-size: 14px; } .classes th { cursor: pointer; }
.classes td, .classes th { text-align: right; padding: 4px 7px; }
.classes td:first-child, .classes th:first-child { text-align: left; position: sticky; left: 0; background: #fff;
  min-width: 96px; max-width: 240px; overflow-wrap: break-word; }
.classes th:first-child { background: #f4f6f8; z-index: 2; }
.classes tbody tr:hover td { background: #eef4fb; }
.curves { display: flex; flex-wrap: wrap; gap: 20px; } .curves figure { flex: 1 1 340px; margin: 0; min-width: 0; }
svg { width: 100%; height: auto; display: block; }
.legend { list-style: none; padding: 0 0 0 8px; margin: 6px 0; display: flex; flex-wrap: wrap; gap: 2px 16px;
  font-size: 13px; } .legend span { display: inline-block; width: 18px; height: 3px; margin: 0 6px 3px 0; }
.dim [data-key]:not(.on) { opacity: .12; } .on polyline { stroke-width: 3.5; }
.on polyline[stroke="#c4c9cf"] { stroke: #111; }
.confusion td { text-align: center; min-width: 30px; border: 1px solid #eceef0; }
.confusion tbody th { white-space: nowrap; font-weight: 400; position: sticky; left: 0; background: #fff; }
.confusion thead th { vertical-align: bottom; font-weight: 400; }
.confusion thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 170px; overflow: hidden;
  white-space: nowrap; display: inline-block; }
.corner { color: #57606a; }
.card { margin: 0 0 20px; border-top: 1px solid #e3e6e9; padding-top: 8px; display: flex; flex-wrap: wrap;
  gap: 6px 14px; }
figcaption { flex: 1 0 100%; overflow-wrap: anywhere; } .card ul { flex: 1 1 160px; margin: 0; padding-left: 18px;
  font-size: 13px; color: #57606a; }
.pair { flex: 4 1 300px; display: flex; flex-wrap: wrap; gap: 6px; align-items: flex-start; }
.pair img { flex: 1 1 290px; min-width: 0; max-width: min(100%, 520px); height: auto; }
.key { display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0; margin: 8px 0; list-style: none; }
.key i { display: inline-block; width: 14px; height: 14px; border: 3px solid; margin-right: 6px; vertical-align: -3px;
  box-sizing: border-box; }
@media (max-width: 700px) {
  .errors thead { display: none; } .errors tr { display: flex; flex-wrap: wrap; border-bottom: 1px solid #eceef0; }
  .errors th, .errors td { border: 0; } .errors td:nth-child(n+4) { flex: 1 0 100%; box-sizing: border-box; }
}
</style></head><body>
<h1>$title</h1><p>$subject</p>
<div class="numbers">$numbers</div>
<p>Per cent. AP is COCO's average precision over IoU 0.5 to 0.95. Precision, recall and F1 are those at the thresholds
below, at IoU 0.5, and so is all that follows.</p>
<ul class="notes">$notes</ul>
<h2>What goes wrong</h2>$errors<p>$sizes</p>
<h2>Classes and thresholds</h2>$threshold$classes
<p>A click on a heading sorts; a row under the pointer marks its class in the curves.</p>
<h2>Curves</h2><div class="curves">$curves</div>
<p>The coloured classes have the lowest AP50 of those with a right detection. A dot is the best threshold.</p>
<h2>Confusion matrix</h2>$matrix
<p>A true box in the column "background" has no detection of IoU 0.5; a detection in the row "background" lies on no
object, or on one that has another detection. Cells are shaded by their share of the row.</p>
<h2>Worst images</h2>
<ul class="key"><li><i style="color:#009e73"></i>right</li><li><i style="color:#d55e00;border-style:dashed"></i>missed
</li><li><i style="color:#cc79a7"></i>wrong class</li><li><i style="color:#f0e442"></i>poor box</li>
<li><i style="color:#56b4e9"></i>duplicate</li><li><i style="color:#d55e00"></i>false alarm</li></ul>$worst
<h2>Left out</h2><ul>$left_out</ul>
<h2>Definitions</h2>
<p>Detections are matched with true boxes of their class by falling score at IoU 0.5, as in COCO. Each error counts
once. Wrong class: a true box left over, and a detection of another class with IoU 0.5 or more. Poor box: a true box
left over, and a detection of its class with IoU 0.1 to 0.5. Duplicate: another detection with IoU 0.5 or more with a
true box that has one. False alarm: any other detection. Missed: any other true box. Crowds, and detections on them, do
not count.</p>
<script>
for (const table of document.querySelectorAll("table.classes")) {
  const body = table.tBodies[0], value = (row, k) => row.cells[k].textContent.replaceAll(",", "");
  [...table.tHead.rows[0].cells].forEach((head, k) => {
    const sort = () => {
      const down = head.dataset.down = head.dataset.down === "1" ? "0" : "1";
      const compare = (a, b) => {
        const x = parseFloat(value(a, k)), y = parseFloat(value(b, k));
        if (k === 0) return value(a, k).localeCompare(value(b, k));
        return (isNaN(y) ? -1 : y) - (isNaN(x) ? -1 : x);
      };
      body.append(...[...body.rows].sort((a, b) => (down === "1" ? 1 : -1) * compare(a, b)));
    };
    head.onclick = sort;
    head.onkeydown = event => { if (event.key === "Enter") sort(); };
  });
}
const curves = document.querySelector(".curves");
document.querySelectorAll("tr[data-key], .legend li").forEach(source => {
  const mark = on => {
    if (!source.dataset.key) return;
    curves.classList.toggle("dim", on);
    curves.querySelectorAll(`[data-key="$${source.dataset.key}"]`).forEach(e => e.classList.toggle("on", on));
  };
  source.onmouseenter = () => mark(true);
  source.onmouseleave = () => mark(false);
});
</script></body></html>
"""
