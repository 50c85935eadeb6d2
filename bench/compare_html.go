package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
)

//go:embed compare.html
var comparePage string

// sharedPage has the style and the bars.
//
//go:embed page.html
var sharedPage string

// pageSection is a section as the page draws it.
type pageSection struct {
	ID, Title, Unit string
	Lines           []pageLine
	Notes           []string
	Wide            bool // for long names of bars
}

type pageLine struct {
	Name, About string
	Bars        []pageBar
}

// pageBar is one bar; lengths are percentages of the longest of its line.
type pageBar struct {
	Driver, Class, Text, Label string
	Length, Low, Top, Mark     float64
	Spread, Marked, Empty      bool
}

type pageRuntime struct {
	Name     string
	Sections []pageSection
}

// HTML returns the comparison as one page that needs nothing else: no script, no
// font and no image from anywhere.
func (c Comparison) HTML() ([]byte, error) {
	data := struct {
		Comparison
		Line, Warning string
		Classes       map[string]string
		Runtimes      []pageRuntime
	}{c, c.Machine.line(), c.warning(), driverClasses(c.working()), nil}
	for _, r := range c.runtimes() {
		p := pageRuntime{Name: languageTitle(r)}
		for _, s := range c.sections(r) {
			p.Sections = append(p.Sections, s.page(data.Classes))
		}
		data.Runtimes = append(data.Runtimes, p)
	}
	return render(comparePage, data)
}

// driverClasses gives each driver a colour.
func driverClasses(drivers []string) map[string]string {
	out := map[string]string{}
	for i, d := range drivers {
		out[d] = fmt.Sprintf("d%d", i%6)
	}
	return out
}

// render fills a page.
func render(page string, data any) ([]byte, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"ratio": func(v float64) string { return fmt.Sprintf("%.2f", v) },
		"money": money,
	}).Parse(sharedPage)
	if err == nil {
		t, err = t.Parse(page)
	}
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// page scales the bars. The lines of a section share no scale: the times of one
// workload are hundreds of those of another.
func (s section) page(classes map[string]string) pageSection {
	p := pageSection{ID: s.id, Title: s.title, Unit: s.unit, Notes: s.notes}
	for _, l := range s.lines {
		longest := 0.0
		for _, v := range l.values {
			longest = max(longest, v.value, v.top, v.mark)
		}
		line := pageLine{Name: l.name, About: l.about}
		for i, v := range l.values {
			d := s.columns[i]
			bar := pageBar{Driver: d, Class: classes[d], Text: v.text, Empty: v == none}
			bar.Label = fmt.Sprintf("%s, %s: %s", l.name, d, v.text)
			if longest > 0 {
				bar.Length = 100 * max(v.value, 0) / longest
				bar.Low, bar.Top, bar.Mark = 100*v.low/longest, 100*v.top/longest, 100*v.mark/longest
			}
			if bar.Spread = v.top > v.low; bar.Spread {
				bar.Label += fmt.Sprintf(", mostly %.4g to %.4g", v.low, v.top)
			}
			if bar.Marked = v.mark > 0; bar.Marked {
				bar.Label += fmt.Sprintf("; plain %s: %.0f", v.markName, v.mark)
			}
			line.Bars = append(line.Bars, bar)
		}
		p.Lines = append(p.Lines, line)
	}
	return p
}
