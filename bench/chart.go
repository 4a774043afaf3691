package main

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// chart is a figure against the number of tasks in the cluster.
type chart struct {
	file, title, y string
	scenario       string
	// lines are the figures to draw, and what each is divided by: 1, or the number of
	// tasks.
	lines   []string
	perTask float64
}

// charts draws cost against size into a directory, as far as it was measured.
func (m *measurements) charts(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("draw charts: %w", err)
	}
	deeds := []string{"service of 10 created", "it loses a task", "service of 9 removed", "large service loses a task", "large service gains a task"}
	suffixed := func(suffix string) []string {
		var names []string
		for _, d := range deeds {
			names = append(names, d+suffix)
		}
		return names
	}
	for _, store := range []string{embedded, consul} {
		for _, c := range []chart{
			{"change-cpu", "CPU of managers for one change", "ms", "change", suffixed(", CPU managers"), 0},
			{"change-written", "Written to the store for one change", "KiB", "change", suffixed(", written"), 0},
			{"deploy-cpu", "CPU of managers and Consul for each task of a service", "ms", "deploy", []string{"CPU managers and Consul"}, 1000},
			{"deploy-memory", "Peak memory of managers and Consul", "MiB", "deploy", []string{"peak memory"}, 0},
		} {
			if err := m.draw(&c, store, filepath.Join(dir, c.file+"-"+store+".svg")); err != nil {
				return fmt.Errorf("draw chart %s: %w", c.file, err)
			}
		}
	}
	return nil
}

func (m *measurements) draw(c *chart, store, path string) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title+", "+store, "tasks in the cluster", c.y
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Y.Min = 0
	p.Legend.Top = true
	p.Add(plotter.NewGrid())
	// Dark pages too show it on white.
	p.BackgroundColor = color.White
	most, points := 0.0, 0
	for i, name := range c.lines {
		var xys plotter.XYs
		for g, rs := range grouped(m.Results) {
			at := slices.IndexFunc(rs[0].Figures, func(f figure) bool { return f.Name == name })
			if g.scenario != c.scenario || g.store != store || at < 0 || g.tasks < 100 {
				continue
			}
			y := spread(rs, at).median
			if c.perTask > 0 {
				y *= c.perTask / float64(g.tasks)
			}
			most = math.Max(most, y)
			xys = append(xys, plotter.XY{X: float64(g.tasks), Y: y})
		}
		if len(xys) == 0 {
			continue
		}
		points = max(points, len(xys))
		line, dots, err := plotter.NewLinePoints(xys)
		if err != nil {
			return err
		}
		line.Color, dots.Color, dots.Shape = plotutil.Color(i), plotutil.Color(i), plotutil.Shape(i)
		p.Add(line, dots)
		p.Legend.Add(name, line, dots)
	}
	if points < 2 {
		return nil // nothing to compare
	}
	// Room for the legend.
	p.Y.Max = most * (1.3 + 0.1*float64(len(c.lines)))
	if err := p.Save(18*vg.Centimeter, 10*vg.Centimeter, path); err != nil {
		return err
	}
	return nil
}
