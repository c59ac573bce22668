"""The look of the page: one style sheet, light and dark, phone and desk; nothing is loaded."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper:#f6f7f9; --card:#ffffff; --ink:#1d2530; --soft:#5d6b7c; --line:#e1e5ea; --tint:#eef2f6;
  --good:#12805c; --good-bg:#dff5ea; --bad:#c4314b; --bad-bg:#fde4e8; --wait:#8a6100;
  --wait-bg:#fff1cf;
  --c0:#2f6fde; --c1:#e4572e; --c2:#17a398; --c3:#a63fc0; --c4:#d79a00; --c5:#5b7083; }
@media (prefers-color-scheme: dark) { :root {
  --paper:#10151c; --card:#182029; --ink:#e6ebf1; --soft:#98a6b5; --line:#2a3541; --tint:#202a35;
  --good:#5fd6a5; --good-bg:#143528; --bad:#ff8095; --bad-bg:#42202a; --wait:#f0c560;
  --wait-bg:#3b3013;
  --c0:#6ea3ff; --c1:#ff8a63; --c2:#4cd4c7; --c3:#d18be4; --c4:#f2c14e; --c5:#9fb2c4; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width:1180px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:1.75rem; line-height:1.2; margin:0 0 6px; overflow-wrap:anywhere;
  letter-spacing:-.01em; }
h2 { font-size:1.1rem; margin:36px 0 12px; }
p { margin:6px 0; } .soft { color:var(--soft); } small { color:var(--soft); }
.chips { display:flex; flex-wrap:wrap; gap:6px; margin:10px 0 0; padding:0; list-style:none; }
.chips li { background:var(--tint); border-radius:99px; padding:2px 11px; font-size:.86rem;
  overflow-wrap:anywhere; }
.tiles { display:grid; grid-template-columns:repeat(auto-fill,minmax(165px,1fr)); gap:12px;
  margin-top:22px; }
.tile, .card, figure.plot { background:var(--card); border:1px solid var(--line);
  border-radius:12px; padding:14px 16px; margin:0; }
.tile b { display:block; font-size:1.55rem; line-height:1.25; font-variant-numeric:tabular-nums; }
.tile span { color:var(--soft); font-size:.84rem; overflow-wrap:anywhere; }
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--line);
  border-radius:12px; }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums;
  font-size:.9rem; }
th, td { padding:9px 12px; text-align:right; white-space:nowrap;
  border-bottom:1px solid var(--line); }
thead th { color:var(--soft); font-weight:600; font-size:.8rem; }
tbody tr:last-child > * { border-bottom:0; }
th:first-child, td:first-child { text-align:left; position:sticky; left:0;
  background:var(--card); }
th:nth-child(2), td:nth-child(2) { text-align:left; }
.heat th:nth-child(2), .heat td:nth-child(2) { text-align:right; }
tbody th { font-weight:600; }
.best { color:var(--good); font-weight:700; }
.badge { border-radius:6px; padding:2px 8px; font-size:.8rem; font-weight:600;
  background:var(--tint); color:var(--soft); }
.badge.passed { background:var(--good-bg); color:var(--good); }
.badge.failed { background:var(--bad-bg); color:var(--bad); }
.badge.waiting { background:var(--wait-bg); color:var(--wait); }
.heat td { background-repeat:no-repeat; background-size:100% 3px; background-position:0 100%; }
.heat td i { display:block; height:4px; border-radius:2px; background:var(--c0);
  margin:3px 0 0 auto; opacity:.75; }
.grid2 { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));
  gap:14px; }
.grid2.wide { grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr)); }
.bars { display:grid; grid-template-columns:minmax(84px,max-content) 1fr max-content;
  gap:7px 10px; align-items:center; font-size:.88rem; }
.bars div { background:var(--tint); border-radius:5px; height:13px; overflow:hidden; }
.bars div i { display:block; height:100%; border-radius:5px; }
.bars span { overflow-wrap:anywhere; } .bars b { font-variant-numeric:tabular-nums;
  font-weight:600; text-align:right; }
.ious { display:grid; gap:5px 10px; align-items:center; font-size:.85rem; min-width:460px;
  grid-template-columns:fit-content(190px) minmax(90px,1fr) repeat(4,max-content); }
.ious div { position:relative; background:var(--tint); border-radius:4px; height:13px; }
.ious div i { display:block; height:100%; border-radius:4px; background:var(--c0); opacity:.8; }
.ious u { position:absolute; top:5.5px; height:2px; min-width:1px; background:var(--ink); }
.ious u::before, .ious u::after { content:""; position:absolute; top:-3px; height:8px; width:2px;
  background:var(--ink); } .ious u::before { left:0; } .ious u::after { right:0; }
.ious span { overflow-wrap:break-word; min-width:0; } .ious b, .ious em, .ious small {
  text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
.ious em { font-style:normal; color:var(--soft); }
.matrix svg { margin:0 auto; } .cell { fill:var(--tint); } .hit { fill:var(--c0); }
.miss { fill:var(--bad); } .matrix g text { fill:var(--ink); } .matrix g .on { fill:var(--card); }
.pairs { align-self:start; } .pairs th { white-space:normal; overflow-wrap:anywhere; }
.pairs th:nth-child(2) { text-align:right; }
.pairs td:nth-child(2) { text-align:right; white-space:normal; overflow-wrap:anywhere; }
h3 { font-size:.95rem; margin:16px 0 8px; }
.card h3 { margin:0 0 10px; font-size:.95rem; }
figcaption { display:flex; flex-wrap:wrap; gap:4px 14px; font-size:.86rem; margin-bottom:6px; }
figcaption span { color:var(--soft); } figcaption i { display:inline-block; width:10px;
  height:10px; border-radius:3px; margin-right:5px; }
.plot svg { width:100%; height:auto; display:block; }
.plot text { font-size:10.5px; fill:var(--soft); } .plot .grid { stroke:var(--line);
  stroke-width:1; }
polyline { fill:none; stroke-width:2; stroke-linejoin:round; stroke-linecap:round; }
.faint { opacity:.4; stroke-width:1; }
.l0{stroke:var(--c0)} .l1{stroke:var(--c1)} .l2{stroke:var(--c2)} .d0{fill:var(--c0)}
  .d1{fill:var(--c1)} .d2{fill:var(--c2)} .d5{fill:var(--c5)}
.dot { opacity:.85; } .dot.ghost { opacity:.3; }
.front { stroke:var(--c0); stroke-width:1.5; stroke-dasharray:5 4; opacity:.7; }
.b0{background:var(--c0)} .b1{background:var(--c1)} .b2{background:var(--c2)}
  .b3{background:var(--c3)} .b4{background:var(--c4)} .b5{background:var(--c5)}
.shots { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));
  gap:14px; }
.shots figure { margin:0; background:#fff; color:#222; border:1px solid var(--line);
  border-radius:12px; padding:10px; }
.shots img { width:100%; height:auto; display:block; border-radius:4px; }
  .shots figcaption { margin:8px 2px 0; overflow-wrap:anywhere; }
.wrap thead th { white-space:normal; vertical-align:bottom; }
.says td:last-child { text-align:left; white-space:normal; min-width:300px; }
.says thead th:last-child { text-align:left; }
.shots.small figure { display:flex; flex-direction:column-reverse; justify-content:flex-end; }
.shots.small figcaption { margin:0 2px 8px; }
.shots.small { grid-template-columns:repeat(auto-fit,minmax(min(100%,240px),1fr)); }
details { margin-top:10px; } summary { cursor:pointer; color:var(--soft); font-weight:600; }
details table { font-size:.84rem; margin-top:8px; } details td { text-align:left;
  white-space:normal; overflow-wrap:anywhere; }
ul.list { margin:8px 0; padding-left:20px; } ul.list li { overflow-wrap:anywhere; }
.problems { border-color:var(--bad); }
footer { margin-top:44px; color:var(--soft); font-size:.84rem; }
@media (max-width:560px) { main { padding:18px 12px 40px; } h1 { font-size:1.4rem; } th,
  td { padding:8px 9px; } }
@media print { body { background:#fff; } .scroll { overflow:visible; } }
"""
