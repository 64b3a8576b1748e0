package main

import (
	"errors"
	"flag"
	"fmt"
	"image/color"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/emd-go/emd/examples/graph/emgraph"
)

func drawPlot(flags *flag.FlagSet) action {
	out := flags.String("o", "graph.png", "draw to this `file`: .png or .svg")
	iterations := flags.Int("iterations", 10, "of PageRank")
	return func(c *call) error {
		switch {
		case formats[strings.ToLower(filepath.Ext(*out))] == nil:
			return usageError{fmt.Sprintf("-o %s: the name must end in .png or .svg", *out)}
		case *iterations < 1:
			return usageError{"-iterations must be at least 1"}
		}
		return c.ask(false, func(g *emgraph.Graph) error {
			t := newTask(c.stderr, "reading edges")
			from, to := emgraph.Degrees(g.Runs(c.ctx, 1, t.show), g.Nodes())
			t.end()
			rank, err := c.ranks(g, *iterations)
			if err != nil {
				return err
			}
			for v := range rank {
				rank[v] *= float32(g.Nodes())
			}
			err = writePlot(*out,
				panel(filepath.Base(c.db)+": "+size(g), "edges of a node", curve{"outgoing", atLeast(from)}, curve{"incoming", atLeast(to)}),
				panel("PageRank after "+plural(*iterations, "iteration"), "rank of a node, as a multiple of the mean", curve{"", atLeast(rank)}))
			if err == nil {
				fmt.Fprintf(c.stderr, "drew %s\n", *out)
			}
			return err
		})
	}
}

// A curve is a set of points, with the name of what they show. Axes are
// logarithmic: the coordinates are decimal logarithms, as the library, when it takes
// them itself, makes room for the names of axes in the wrong place.
type curve struct {
	name   string
	points plotter.XYs
}

// atLeast returns how many of the values are as large as each or larger. Such a
// distribution needs no bins, so it shows the single nodes at its end as they
// are; a power law is a straight line. Values of 0 have no place on a
// logarithmic axis. Points too close to be told apart are left out.
func atLeast[T uint32 | float32](values []T) (points plotter.XYs) {
	slices.Sort(values)
	for i, v := range values {
		if v == 0 || i > 0 && v == values[i-1] {
			continue
		}
		p := plotter.XY{X: math.Log10(float64(v)), Y: math.Log10(float64(len(values) - i))}
		if len(points) == 0 || far(p, points[len(points)-1]) || i == len(values)-1 {
			points = append(points, p)
		}
	}
	return points
}

// far tells whether two points are further apart than about a pixel.
func far(a, b plotter.XY) bool {
	const pixel = 0.003 // of a decade
	return math.Abs(a.X-b.X) > pixel || math.Abs(a.Y-b.Y) > pixel
}

// styles of curves: dots, and rings around them, so that equal
// curves can be seen both, in colours that also the colour-blind can tell apart
// (Okabe, Ito: Color Universal Design, 2008).
var styles = []draw.GlyphStyle{
	{Color: color.RGBA{0x00, 0x72, 0xb2, 0xff}, Radius: vg.Points(1.4), Shape: draw.CircleGlyph{}},
	{Color: color.RGBA{0xd5, 0x5e, 0x00, 0xff}, Radius: vg.Points(2.6), Shape: draw.RingGlyph{}},
}

// panel draws curves over logarithmic axes.
func panel(title, values string, curves ...curve) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.Title.Padding = vg.Points(8)
	p.X.Label.Text = values
	p.Y.Label.Text = "nodes that have as much or more"
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Tick.Marker = decades{}
		axis.Padding = vg.Points(4)
		axis.Label.Padding = vg.Points(4)
	}
	for _, t := range []*text.Style{&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle} {
		t.Font.Variant = "Sans"
		t.Font.Size = vg.Points(10)
	}
	p.Title.TextStyle.Font.Size = vg.Points(12)
	grid := plotter.NewGrid()
	grid.Vertical.Color = color.Gray{0xe0}
	grid.Horizontal.Color = color.Gray{0xe0}
	p.Add(grid)
	p.Legend.Top = true
	p.Legend.Padding = vg.Points(3)
	for i, c := range curves {
		if len(c.points) == 0 {
			continue
		}
		dots := &plotter.Scatter{XYs: c.points, GlyphStyle: styles[i]}
		p.Add(dots)
		if c.name != "" {
			p.Legend.Add(c.name, dots)
		}
	}
	p.X.Min, p.X.Max = widened(p.X.Min, p.X.Max)
	p.Y.Min, p.Y.Max = widened(p.Y.Min, p.Y.Max)
	return p
}

// widened makes room for two ticks with names, also without any point, when lo
// and hi are infinite.
func widened(lo, hi float64) (float64, float64) {
	if lo > hi {
		lo, hi = 0, 1
	}
	for math.Floor(hi)-math.Ceil(lo) < 1 {
		lo, hi = lo-0.1, hi+0.1
	}
	return lo, hi
}

// decades marks the powers of ten, and, without names, what lies between.
type decades struct{}

func (decades) Ticks(lo, hi float64) (ticks []plot.Tick) {
	for e := math.Floor(lo); e <= hi; e++ {
		for m := 1.0; m < 10; m++ {
			t := plot.Tick{Value: e + math.Log10(m)}
			if m == 1 {
				t.Label = power(e)
			}
			if lo <= t.Value && t.Value <= hi {
				ticks = append(ticks, t)
			}
		}
	}
	return ticks
}

// power returns 10 to the power of e for people.
func power(e float64) string {
	switch {
	case e >= 6:
		return fmt.Sprintf("%gM", math.Pow(10, e-6))
	case e >= 3:
		return fmt.Sprintf("%gk", math.Pow(10, e-3))
	}
	return fmt.Sprintf("%g", math.Pow(10, e))
}

// formats are the kinds of files that a plot can be.
var formats = map[string]func(w, h vg.Length) vg.CanvasWriterTo{
	".png": func(w, h vg.Length) vg.CanvasWriterTo {
		return vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(w, h), vgimg.UseDPI(144))}
	},
	".svg": func(w, h vg.Length) vg.CanvasWriterTo { return vgsvg.New(w, h) },
}

// writePlot draws panels side by side.
func writePlot(path string, panels ...*plot.Plot) error {
	const width, height = 14 * vg.Centimeter, 11 * vg.Centimeter
	canvas := formats[strings.ToLower(filepath.Ext(path))](width*vg.Length(len(panels)), height)
	margin := vg.Points(10)
	tiles := draw.Tiles{Rows: 1, Cols: len(panels), PadX: 2 * margin, PadTop: margin, PadBottom: margin, PadLeft: margin, PadRight: margin}
	for i, p := range panels {
		p.Draw(tiles.At(draw.New(canvas), i, 0))
	}
	return writeWhole(path, canvas)
}

// writeWhole makes a file of what w writes, or none.
func writeWhole(path string, w io.WriterTo) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".plot-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = w.WriteTo(f)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
