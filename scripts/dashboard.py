"""dashboard.py SCHEMA: writes TypeScript that compiles only if deploy/grafana/dashboard.json has the types of Grafana's
schema. SCHEMA is the directory of the installed package @grafana/schema."""

import json
import pathlib
import sys

# Types of panels, and the modules with the types of their options.
PANELS = {"timeseries": "TimeSeries", "stat": "Stat", "table": "Table", "heatmap": "Heatmap", "text": "Text"}
# JSON has the values of enumerations, not their names.
LOOSE = """type Loose<T> = T extends string ? `${T}` : T extends (infer U)[] ? Loose<U>[]
    : T extends object ? { [K in keyof T]: Loose<T[K]> } : T;"""


def main():
    raw = f"{sys.argv[1]}/dist/esm/raw"
    root = pathlib.Path(__file__).resolve().parent.parent
    dashboard = json.loads((root / "deploy/grafana/dashboard.json").read_text())
    panels = dashboard.pop("panels")
    print(f"import {{ Dashboard, Panel, RowPanel }} from '{raw}/dashboard/x/dashboard_types.gen';")
    for kind in sorted({panel["type"] for panel in panels} - {"row"}):
        if kind not in PANELS:
            sys.exit(f"opi-spdk: dashboard.py does not know panels of the type {kind!r}: add it to PANELS")
        print(f"import * as {kind} from '{raw}/composable/{kind}/panelcfg/x/{PANELS[kind]}PanelCfg_types.gen';")
    print(LOOSE)
    declare("dashboard", "Dashboard", dashboard)
    for number, panel in enumerate(panels):
        kind = panel["type"]
        declare(f"panel{number}", "RowPanel" if kind == "row" else "Panel", panel)
        if kind != "row":
            declare(f"options{number}", f"Partial<{kind}.Options>", panel.get("options", {}))
            custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
            if custom is not None:
                declare(f"fields{number}", f"Partial<{kind}.FieldConfig>", custom)


def declare(name, kind, value):
    print(f"export const {name}: Loose<{kind}> = {json.dumps(value)};")


if __name__ == "__main__":
    main()
