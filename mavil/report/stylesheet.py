"""The report's look: system fonts, light and dark, from a phone to a wide screen. Nothing is loaded from anywhere."""

STYLESHEET = """
:root {
  color-scheme: light dark;
  --ground: #fbfbf9; --surface: #ffffff; --ink: #1c1e21; --soft: #5b6168; --rule: #dcdfe3;
  --accent: #1f6f8b; --line0: #1f6f8b; --line1: #c2571a; --line2: #7a4fa3; --line3: #4d7c2a;
  --line4: #b3306b; --line5: #6b6f76;
  --good: #1e7a3c; --good-ground: #e6f4ea; --bad: #b3261e; --bad-ground: #fbe9e7; --muted: #9aa1a9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15171a; --surface: #1d2024; --ink: #e8eaed; --soft: #a6adb5; --rule: #343a41;
    --accent: #62b6d3; --line0: #62b6d3; --line1: #f0925a; --line2: #bd9be0; --line3: #9ccc65;
    --line4: #f07fb0; --line5: #b4bac1;
    --good: #7ed39a; --good-ground: #16301f; --bad: #ff8a80; --bad-ground: #3a1b18; --muted: #737b84;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 1200px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 48px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 12px; letter-spacing: -0.01em; }
h2 { font-size: 1.4rem; line-height: 1.3; margin: 0 0 8px; }
h3 { font-size: 1.05rem; margin: 0 0 10px; }
h4 { font-size: 0.85rem; font-weight: 600; margin: 0 0 6px; color: var(--soft); }
p { margin: 0 0 12px; max-width: 76ch; }
a { color: var(--accent); }
.note, figcaption, caption, footer p { color: var(--soft); font-size: 0.85rem; }
nav ol { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 20px 0 0; }
section { margin-top: 44px; }

.verdict { margin-top: 20px; padding: 18px 22px; border-radius: 10px; border-left: 6px solid; }
.verdict.passed { background: var(--good-ground); border-color: var(--good); }
.verdict.failed { background: var(--bad-ground); border-color: var(--bad); }
.verdict ul { list-style: none; margin: 8px 0 0; padding: 0; display: grid; gap: 6px 36px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.verdict li { display: flex; gap: 10px; align-items: baseline; }
.verdict .mark { font-weight: 700; }
.verdict li.passed .mark { color: var(--good); }
.verdict li.failed .mark, .verdict li.failed .value { color: var(--bad); }
.verdict .what { flex: 1; }
.verdict small { display: block; color: var(--soft); }
.verdict .value { font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }

.table { overflow-x: auto; margin: 14px 0 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
caption { text-align: left; padding-bottom: 6px; }
th, td { text-align: left; padding: 8px 14px 8px 0; border-bottom: 1px solid var(--rule); vertical-align: middle; }
thead th { color: var(--soft); font-weight: 600; font-size: 0.82rem; vertical-align: bottom; }
tbody th { font-weight: 600; }
.bar { display: inline-flex; flex-direction: column; gap: 3px; min-width: 92px; width: 100%; max-width: 180px; }
.bar b { font-weight: 600; }
.track { position: relative; display: block; height: 8px; border-radius: 2px; background: var(--rule); }
.fill { display: block; height: 100%; border-radius: 2px; background: var(--accent); }
.muted b { font-weight: 400; color: var(--soft); }
.muted .fill { background: var(--muted); }
.chance { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); }

.charts { display: grid; gap: 18px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); margin: 14px 0; }
.chart { margin: 0; padding: 12px 14px; background: var(--surface); border: 1px solid var(--rule); border-radius: 8px; }
.chart figcaption { color: var(--ink); font-weight: 600; font-size: 0.9rem; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: flex; flex-direction: column; font-size: 0.8rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.key::before { content: ""; display: inline-block; width: 16px; height: 3px; margin-right: 7px; vertical-align: middle; }
.key b { color: var(--ink); font-weight: 600; }
polyline.line0 { stroke: var(--line0); } circle.line0 { fill: var(--line0); } .key.line0::before { background: var(--line0); }
polyline.line1 { stroke: var(--line1); } circle.line1 { fill: var(--line1); } .key.line1::before { background: var(--line1); }
polyline.line2 { stroke: var(--line2); } circle.line2 { fill: var(--line2); } .key.line2::before { background: var(--line2); }
polyline.line3 { stroke: var(--line3); } circle.line3 { fill: var(--line3); } .key.line3::before { background: var(--line3); }
polyline.line4 { stroke: var(--line4); } circle.line4 { fill: var(--line4); } .key.line4::before { background: var(--line4); }
polyline.line5 { stroke: var(--line5); } circle.line5 { fill: var(--line5); } .key.line5::before { background: var(--line5); }

article { background: var(--surface); border: 1px solid var(--rule); border-radius: 8px; padding: 16px 18px; margin: 14px 0; }
figure { margin: 0 0 10px; }
img, video { display: block; width: 100%; height: auto; border-radius: 4px; }
audio { display: block; width: 100%; height: 40px; }
.panels { display: grid; gap: 20px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); }
.spectrogram img { aspect-ratio: 2.2; image-rendering: pixelated; }
.spectrogram figcaption { display: flex; justify-content: space-between; font-size: 0.75rem; }
.hits { display: grid; gap: 8px; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); align-items: start; }
.hit { padding: 8px; border: 2px solid transparent; border-radius: 8px; min-width: 0; }
/* The picture at the top, the browser's controls below it rather than over it. */
.hit video { aspect-ratio: 5 / 7; object-fit: contain; object-position: top; background: #000; }
.hit p { font-size: 0.8rem; margin: 6px 0 0; color: var(--soft); overflow-wrap: anywhere; }
.hit.query { background: var(--ground); }
.hit.answer { border-color: var(--good); }
.hit.answer h4 { color: var(--good); }
.hit.apart { border-style: dashed; }
.rank { font-weight: 400; font-size: 0.9rem; margin-left: 8px; color: var(--soft); }
.rank.found { color: var(--good); }

footer { padding-top: 28px; padding-bottom: 48px; }
details { border-top: 1px solid var(--rule); padding: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: 0.82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 8px 0; }
@media (max-width: 600px) {
  header, main, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 28px; }
  h1 { font-size: 1.6rem; }
  .hits { grid-template-columns: 1fr 1fr; }
  .hit.query { grid-column: 1 / -1; }
  .hit.query video { max-width: 200px; }
  table { min-width: 660px; }
}
"""
