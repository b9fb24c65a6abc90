"""The style sheet of the report.

It follows the light or dark mode of the reader's system, and uses one column on a narrow screen.
"""

STYLE = """
:root {
  --paper: #faf9f6; --card: #ffffff; --ink: #22252b; --soft: #666b75; --line: #e6e2d8;
  --c0: #2b5c8a; --c1: #c9772b; --c2: #3f8a6b; --c3: #8a5a9e; --c4: #a9473f; --good: #2f7d5b; --tint: #eef3f6;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Charter, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --card: #1d2026; --ink: #e7e4dd; --soft: #9aa0ab; --line: #2e323a;
    --c0: #7db2e2; --c1: #e9a35c; --c2: #74c3a0; --c3: #c29ad3; --c4: #e38a80; --good: #74c3a0; --tint: #20272e;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 var(--sans); }
main { max-width: 1020px; margin: 0 auto; padding: 0 24px 64px; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: 3px; }
a:hover { text-decoration-color: var(--c0); }
code { font: 0.82em var(--mono); overflow-wrap: anywhere; }

header { padding: 72px 0 20px; }
.brand { margin: 0; font: 600 13px var(--sans); letter-spacing: 0.14em; text-transform: uppercase; color: var(--c1); }
h1 { margin: 8px 0 6px; font: 500 clamp(32px, 6vw, 52px)/1.1 var(--serif); letter-spacing: -0.01em; }
h2 { margin: 0; font: 500 30px/1.2 var(--serif); }
h3 { margin: 40px 0 8px; font: 600 17px/1.3 var(--sans); }
.lead { margin: 6px 0 22px; max-width: 70ch; color: var(--soft); }
.note { margin: 4px 0 12px; max-width: 80ch; color: var(--soft); font-size: 14px; overflow-wrap: anywhere; }
section { padding-top: 56px; }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px; margin-top: 12px; }
.card { display: flex; flex-direction: column; padding: 20px 20px 18px; background: var(--card);
  border: 1px solid var(--line); border-top: 3px solid var(--c0); border-radius: 10px; }
.card b { font: 500 34px/1.15 var(--serif); white-space: nowrap; }
.card span { margin-top: 4px; font-weight: 600; font-size: 14px; }
.card small { margin-top: 6px; color: var(--soft); font-size: 13px; line-height: 1.45; }
.card.good { border-top-color: var(--good); } .card.open { border-top-color: var(--c1); }

.pipeline { list-style: none; margin: 0; padding: 0; border-left: 2px solid var(--line); }
.pipeline li { display: grid; grid-template-columns: 120px 210px 1fr 96px; gap: 14px; align-items: center;
  padding: 7px 0 7px 20px; position: relative; }
.pipeline li::before { content: ""; position: absolute; left: -6px; width: 10px; height: 10px; border-radius: 50%;
  background: var(--good); border: 2px solid var(--paper); box-sizing: border-box; outline: 1px solid var(--good); }
.pipeline code { color: var(--soft); }
.time { display: block; height: 6px; border-radius: 3px; background: var(--line); overflow: hidden; }
.time i { display: block; height: 100%; min-width: 2px; background: var(--c0); border-radius: 3px; }
.pipeline .bounds { text-align: right; }

.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
.narrow { max-width: 420px; }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 8px 18px 8px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td code { white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.bounds { color: var(--soft); font-size: 13px; font-variant-numeric: tabular-nums; white-space: nowrap; }

.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 14px;
  margin: 14px 0; }
figure { margin: 0; padding: 16px 16px 10px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
figcaption { font-weight: 600; font-size: 14.5px; }
figcaption .note { margin-left: 8px; font-weight: 400; font-size: 13px; }
svg { display: block; width: 100%; max-width: 620px; height: auto; margin-top: 8px; font-family: var(--sans); }
.tick { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.label { fill: var(--ink); font-size: 12px; }
.rule { stroke: var(--line); stroke-width: 1; }
.reference { stroke: var(--c1); stroke-width: 1.5; stroke-dasharray: 4 4; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.faint { opacity: 0.28; stroke-width: 1.2; }
.curve.c0 { stroke: var(--c0); } .curve.c1 { stroke: var(--c1); } .curve.c2 { stroke: var(--c2); }
.curve.c3 { stroke: var(--c3); } .curve.c4 { stroke: var(--c4); }
.whisker { stroke: var(--c0); stroke-width: 2; stroke-linecap: round; }
.dot { fill: var(--c0); } .dot.c1 { fill: var(--c1); } .dot.c2 { fill: var(--c2); }
.dot.open { fill: var(--card); stroke: var(--c0); stroke-width: 2; } .dot.biased { fill: var(--c1); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 6px 0 2px; color: var(--soft); font-size: 13px; }
.legend i { display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 3px; }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
i.c0, .shares .c0 { background: var(--c0); } i.c1, .shares .c1 { background: var(--c1); }
i.c2, .shares .c2 { background: var(--c2); } i.c3, .shares .c3 { background: var(--c3); }
i.c4, .shares .c4 { background: var(--c4); }
.shares { display: flex; gap: 2px; height: 16px; border-radius: 8px; overflow: hidden; margin-bottom: 10px; }
.shares span { min-width: 3px; flex-basis: 0; }

.samples { display: grid; gap: 22px; margin: 14px 0; }
.sample { border-left: 2px solid var(--line); padding-left: 18px; }
.prompt { margin: 0 0 10px; width: fit-content; max-width: 62ch; padding: 8px 14px; background: var(--tint);
  border-radius: 14px 14px 14px 3px; overflow-wrap: anywhere; white-space: pre-line; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px; }
.answer { padding: 10px 14px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.answer small { color: var(--soft); font-size: 12px; text-transform: uppercase; letter-spacing: 0.08em; }
.answer p { margin: 2px 0 8px; overflow-wrap: anywhere; white-space: pre-line; }
.mark { display: inline-block; margin-right: 8px; padding: 1px 9px; border: 1px solid var(--line); border-radius: 10px;
  color: var(--soft); font-size: 12px; }
.mark.good { color: var(--good); border-color: var(--good); }
.learned blockquote { white-space: pre-wrap; font: 13px/1.5 var(--mono); color: var(--soft); overflow-wrap: anywhere; }
.learned mark { background: var(--tint); color: var(--ink); border-bottom: 2px solid var(--good); }
blockquote { margin: 0 0 12px; padding-left: 18px; border-left: 2px solid var(--line); font-family: var(--serif);
  overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--soft); font-size: 14px; }
footer { margin-top: 64px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--soft); font-size: 13px; }
:target { background: var(--tint); outline: 4px solid var(--tint); }

@media (max-width: 720px) {
  main { padding: 0 16px 48px; }
  header { padding-top: 40px; }
  .pipeline li { grid-template-columns: 1fr auto; gap: 2px 12px; }
  .pipeline code { grid-column: 1; } .pipeline .time { display: none; }
  .pipeline .bounds { grid-column: 2; grid-row: 1; }
}
@media print { body { background: #fff; } figure, .card, .sample { break-inside: avoid; } }
"""
