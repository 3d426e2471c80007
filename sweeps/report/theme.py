"""Style sheet of the report: light, dark, narrow and printed."""

from __future__ import annotations

from sweeps.report.figures.base import INKS


def _variables(theme: int) -> str:
    return "".join(f"--{role.replace('.', '-')}:{pair[theme]};" for role, pair in INKS.items())


def sheet() -> str:
    """The whole style sheet; figure colours follow the reader's theme."""
    light = _variables(0) + "--wash:#f2f3ee;--accent:#1b5e8c;--mark:#e9f1f6;"
    dark = _variables(1) + "--wash:#1d2126;--accent:#8cc1e8;--mark:#1f2d38;"
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"@media print{{:root{{color-scheme:light;{light}}}}}" + _PAGE + _PRINT
    )


_PAGE = """
:root{--serif:Charter,"Bitstream Charter","Sitka Text",Cambria,Georgia,"Liberation Serif",serif;
--sans:-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);font:1.0625rem/1.6 var(--serif);
font-kerning:normal;text-rendering:optimizeLegibility;overflow-wrap:break-word}
main,header,nav,footer{max-width:66rem;margin:0 auto;padding:0 1.25rem}
a{color:var(--accent);text-decoration-thickness:.06em;text-underline-offset:.18em}
:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:2px}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:1rem;background:var(--paper);padding:.5rem 1rem;z-index:9}
header{padding-top:4rem}
.kicker{font:600 .8125rem/1.4 var(--sans);letter-spacing:.08em;text-transform:uppercase;
color:var(--muted);margin:0 0 .75rem}
h1{font-size:clamp(1.9rem,1.3rem + 2.6vw,2.9rem);line-height:1.14;font-weight:600;margin:0 0 1rem;
letter-spacing:-.012em;max-width:22em;text-wrap:balance}
h2{font-size:1.55rem;line-height:1.25;font-weight:600;margin:0 0 .6rem;letter-spacing:-.006em;
text-wrap:balance}
h3{font-size:1.125rem;line-height:1.35;font-weight:600;margin:2rem 0 .4rem}
p,ul,ol,dl{max-width:41rem;margin:0 0 1rem}
p{hanging-punctuation:first;text-wrap:pretty}
.meta,.note,figcaption,caption,summary{font-family:var(--sans);color:var(--muted)}
.meta{font-size:.875rem;line-height:1.55}
.note{font-size:.875rem;line-height:1.55}
.lead{font-size:1.25rem;line-height:1.55;max-width:40rem}
section{padding:2.75rem 0 .5rem;scroll-margin-top:1rem}
section+section{border-top:1px solid var(--rule);margin-top:1.75rem}
nav{margin-top:1.5rem}
nav ol{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.35rem;padding:.8rem 0;margin:0;
max-width:none;border-block:1px solid var(--rule);font:.875rem/1.5 var(--sans)}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
code,pre{font-family:var(--mono);font-size:.84em}
pre{background:var(--wash);padding:1rem 1.1rem;overflow-x:auto;line-height:1.5;border-radius:4px;
white-space:pre-wrap;overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(14.5rem,1fr));gap:1.6rem 2rem;
max-width:none;margin:2rem 0 1rem;padding:0;list-style:none}
.facts li{border-top:2px solid var(--ink);padding-top:.7rem;min-width:0}
.facts .what{font:600 .875rem/1.4 var(--sans);display:block}
.facts .value{font-size:2.3rem;line-height:1.2;font-variant-numeric:lining-nums;display:block}
.facts .value .ci{font-size:.95rem;white-space:nowrap}
.facts .aside{font:.8125rem/1.5 var(--sans);color:var(--muted);display:block}
.gauge{display:block;position:relative;height:.85rem;margin:.45rem 0 .35rem}
.gauge i{position:absolute;top:.36rem;height:2px;background:var(--rule);left:0;right:0}
.gauge b{position:absolute;top:.36rem;height:2px;background:var(--accent)}
.gauge s{position:absolute;top:0;bottom:0;width:2px;background:var(--muted)}
.gauge u{position:absolute;top:.02rem;width:.8rem;height:.8rem;margin-left:-.4rem;border-radius:50%;
background:var(--accent)}
.ci{color:var(--muted);font-size:.86em;white-space:nowrap}
figure{margin:0;min-width:0}
figcaption{font-size:.8125rem;line-height:1.45;margin-top:.3rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,23rem),1fr));
gap:1.5rem 2rem;margin:1.4rem 0 1.8rem;justify-items:start}
.panels.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,14.5rem),1fr));gap:.9rem 1rem}
.panels figure{width:100%;max-width:31rem}
.panels.small figure{max-width:21rem}
svg{display:block;width:100%;height:auto;font-family:var(--sans);overflow:visible}
.photos{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:1.1rem 1rem;
margin:1.2rem 0}
.photos.few{grid-template-columns:repeat(auto-fill,minmax(6rem,1fr))}
img{display:block;width:100%;height:auto;border-radius:3px;background:var(--wash)}
img.map{image-rendering:pixelated}
.example{margin:2rem 0 2.6rem}
.example h3{font-weight:400;font-style:italic;max-width:none}
.example h3 .note{font-style:normal;white-space:nowrap;margin-left:.5rem}
.strip{display:grid;grid-template-columns:repeat(8,minmax(0,1fr));gap:.5rem;margin:.25rem 0 .9rem}
.strip.seven{grid-template-columns:repeat(7,minmax(0,1fr));max-width:54rem}
a.from{color:inherit;text-decoration:underline dotted var(--muted) .06em}
a.from:hover{color:var(--accent)}
table.claims td{max-width:44rem}
table.claims th,table.claims td{min-width:0}
:target{background:var(--mark)}
section:target{background:none}
.strip figcaption{font-size:.75rem;line-height:1.35}
.strip-name{font:600 .875rem/1.4 var(--sans);margin:.8rem 0 .3rem;max-width:none}
.scroll{overflow-x:auto;margin:1.2rem 0;max-width:100%}
table{border-collapse:collapse;font:.875rem/1.45 var(--sans);
font-variant-numeric:tabular-nums lining-nums;min-width:min(100%,26rem)}
caption{text-align:left;padding-bottom:.5rem;font-size:.875rem;caption-side:top}
caption span{display:block;position:sticky;left:0;max-width:min(46rem,calc(100vw - 2.5rem))}
th,td{padding:.32rem .95rem .32rem 0;text-align:left;vertical-align:baseline;white-space:nowrap}
td.wrap,th.wrap{white-space:normal}
thead th{font-weight:600;color:var(--muted);vertical-align:bottom}
thead tr:last-child>*{border-bottom:1.5px solid var(--ink);padding-bottom:.4rem}
tr.groups th{color:var(--ink);padding-bottom:.1rem}
tbody th{font-weight:400}
tbody tr>*{border-bottom:1px solid var(--rule)}
th.n,td.n{text-align:right}
tr.marked>*{background:var(--mark)}
tr.marked th{font-weight:600}
table.text td,table.text th{white-space:normal;min-width:7rem;max-width:26rem}
details{margin:.6rem 0 1rem}
summary{cursor:pointer;font-size:.875rem;padding:.25rem 0;width:fit-content}
.key{display:inline-flex;gap:1.2rem;flex-wrap:wrap;font:.8125rem/1.5 var(--sans);color:var(--muted)}
.scale{display:inline-block;width:5.5rem;height:.6rem;border-radius:2px;vertical-align:baseline;
margin:0 .4rem}
footer{padding-top:2.5rem;padding-bottom:4rem;color:var(--muted);font:.8125rem/1.6 var(--sans)}
@media (max-width:40rem){
body{font-size:1rem}header{padding-top:2.25rem}.lead{font-size:1.125rem}
.strip,.strip.seven{grid-template-columns:repeat(4,minmax(0,1fr))}
.photos{grid-template-columns:repeat(3,minmax(0,1fr));gap:.8rem .6rem}
.photos figcaption{font-size:.75rem}
.panels.small{grid-template-columns:minmax(0,1fr)}
th,td{padding-right:.7rem}
section{padding-top:2rem}
}
"""

_PRINT = """
@media print{
@page{margin:16mm 15mm}
body{font-size:10.5pt;background:#fff}
main,header,nav,footer{max-width:none;padding:0}
header{padding-top:0}
nav,.skip,.download{display:none}
section{padding-top:1.4rem}
h2,h3,.strip-name,section>p{break-after:avoid}
.facts{grid-template-columns:repeat(3,1fr)}
.example{break-inside:avoid;margin:.6rem 0 1rem}
.example .strip{max-width:84%}
p{break-inside:avoid}
thead th{white-space:normal}
figure,.facts li,tr,.strip{break-inside:avoid}
.panels{grid-template-columns:1fr 1fr;gap:1rem}
.panels.small{grid-template-columns:repeat(3,1fr)}
.photos{grid-template-columns:repeat(6,1fr)}
.scroll{overflow:visible}
table{font-size:8.5pt}
th,td{padding-right:.55rem}
a{color:inherit;text-decoration:none}
img{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.gauge *,tr.marked>*,.scale{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""
