package bench

import (
	_ "embed"
	"fmt"
	"math"
	"strings"
)

//go:embed costs.html
var costsPage string

// The drawing of costs against calls per hour, in units of its view box.
const (
	plotWidth, plotHeight                 = 400.0, 270.0
	plotLeft, plotRight, plotTop, plotEnd = 50.0, 380.0, 12.0, 226.0
	plotPoints                            = 80
	// From one call in 10 hours to 100,000 an hour: powers of ten.
	leastRate, mostRate = -1.0, 5.0
	// Costs below a hundred-millionth of the greatest are not drawn.
	plotDecades = 8.0
)

// plot is a drawing with logarithmic axes.
type plot struct {
	ID, Title, About string
	Width, Height    float64
	X, Y             []plotTick
	Lines            []plotLine
	Left, Right      float64
	Top, End         float64
}

type plotTick struct {
	At   float64
	Text string
}

// plotLine are the costs of a driver: the cheaper of both modes, the other, and the
// point at which they change.
type plotLine struct {
	Driver, Class    string
	Cheapest, Other  string // paths
	Marked           bool
	MarkX, MarkY     float64
	BreakEven, Label string
}

// plots draws costs against calls per hour for the functions in a language.
func (c Costs) plots(runtime string, classes map[string]string) []plot {
	var out []plot
	for _, w := range c.Workloads {
		if p, ok := c.plot(runtime, w, classes); ok {
			out = append(out, p)
		}
	}
	return out
}

func (c Costs) plot(runtime, workload string, classes map[string]string) (plot, bool) {
	p := plot{
		ID: runtime + "-" + workload + "-rates", Title: workload, About: about(workload), Width: plotWidth, Height: plotHeight,
		Left: plotLeft, Right: plotRight, Top: plotTop, End: plotEnd,
	}
	var all []*BreakEven
	low, high := math.Inf(1), 0.0
	for _, d := range c.Drivers {
		e := c.breakEven(d, runtime, workload)
		if e == nil {
			continue
		}
		all = append(all, e)
		for _, v := range []float64{e.Cold, e.at(math.Pow(10, leastRate)), e.at(math.Pow(10, mostRate))} {
			if high = max(high, v); v > 0 {
				low = min(low, v)
			}
		}
	}
	if high <= 0 {
		return plot{}, false // nothing costs anything
	}
	top := math.Ceil(math.Log10(high))
	bottom := math.Floor(math.Log10(max(low, high*math.Pow(10, -plotDecades))))
	if top == bottom {
		top++
	}
	x := func(rate float64) float64 {
		return plotLeft + (plotRight-plotLeft)*(math.Log10(rate)-leastRate)/(mostRate-leastRate)
	}
	y := func(v float64) float64 {
		part := (math.Log10(v) - bottom) / (top - bottom)
		return plotEnd - (plotEnd-plotTop)*min(max(part, 0), 1) // log10(0) is below all
	}
	for e := leastRate; e <= mostRate; e++ {
		text := money10(e)
		if e >= 3 {
			text = money10(e-3) + "k"
		}
		p.X = append(p.X, plotTick{x(math.Pow(10, e)), text})
	}
	for e := bottom; e <= top; e++ {
		p.Y = append(p.Y, plotTick{y(math.Pow(10, e)), money10(e)})
	}
	for _, e := range all {
		p.Lines = append(p.Lines, e.line(classes[e.Driver], c.Prices.Currency, x, y))
	}
	return p, true
}

// money10 writes a power of ten.
func money10(e float64) string {
	if e >= 6 || e < -4 {
		return fmt.Sprintf("1e%g", e)
	}
	return fmt.Sprintf("%.*f", max(-int(e), 0), math.Pow(10, e))
}

// line draws the costs of a driver.
func (b BreakEven) line(class, currency string, x, y func(float64) float64) plotLine {
	l := plotLine{Driver: b.Driver, Class: class, BreakEven: "never"}
	even := math.Inf(1)
	if b.CallsPerHour != nil {
		even = *b.CallsPerHour
		l.BreakEven = fmt.Sprintf(digits(even), even)
		if l.Marked = even >= math.Pow(10, leastRate) && even <= math.Pow(10, mostRate); l.Marked {
			l.MarkX, l.MarkY = x(even), y(b.Cold)
		}
	}
	var cheapest, other stroke
	point := func(rate float64) {
		cold, warm := b.Cold, b.at(rate)
		cheapest.to(x(rate), y(min(cold, warm)))
		other.to(x(rate), y(max(cold, warm)))
	}
	last := math.Inf(1)
	for i := range plotPoints + 1 {
		rate := math.Pow(10, leastRate+(mostRate-leastRate)*float64(i)/plotPoints)
		if even > last && even < rate {
			point(even) // a corner
		}
		point(rate)
		last = rate
	}
	l.Cheapest, l.Other = cheapest.String(), other.String()
	l.Label = fmt.Sprintf("%s: %s %s for a million calls that each start an instance, %s if an instance is there", b.Driver, money(b.Cold), currency, money(b.Warm))
	if b.CallsPerHour != nil {
		l.Label += fmt.Sprintf("; keeping it costs less from %s calls an hour on", l.BreakEven)
	}
	return l
}

// stroke is a line that is drawn, as the path of an SVG.
type stroke struct{ strings.Builder }

func (p *stroke) to(x, y float64) {
	letter := 'L'
	if p.Len() == 0 {
		letter = 'M'
	}
	fmt.Fprintf(p, "%c%.1f %.1f", letter, x, y)
}

// costsRuntime is the part of the page for a language.
type costsRuntime struct {
	Name     string
	Advice   []Advice
	Sections []pageSection // with figures over all functions
	Plots    []plot
	Details  []pageSection
}

// HTML returns the costs as one page that needs nothing else: no script, no font and
// no image from anywhere.
func (c Costs) HTML() ([]byte, error) {
	data := struct {
		Costs
		Line, Price, Warning, NotCounted, AdviceNote string
		Classes                                      map[string]string
		Pages                                        []costsRuntime
	}{c, c.Machine.line(), c.price(), c.warning(), notCounted, adviceNote, driverClasses(c.Drivers), nil}
	classes := driverClasses(c.Drivers)
	for _, p := range c.Prices.Clouds {
		if classes[p.Name] == "" {
			classes[p.Name] = "c"
		}
	}
	for _, r := range c.Runtimes {
		page := costsRuntime{Name: languageTitle(r), Plots: c.plots(r, classes)}
		for _, a := range c.Advice {
			if a.Runtime == r {
				page.Advice = append(page.Advice, a)
			}
		}
		for _, s := range c.sections(r) {
			p := s.page(classes)
			p.Wide = len(s.columns) > len(c.Drivers)
			switch {
			case s.drawn:
			case s.detail:
				page.Details = append(page.Details, p)
			default:
				page.Sections = append(page.Sections, p)
			}
		}
		data.Pages = append(data.Pages, page)
	}
	return render(costsPage, data)
}
