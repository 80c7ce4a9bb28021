package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"charm.land/lipgloss/v2"
	"github.com/itchyny/gojq"

	"sotto/control"
	"sotto/internal/safetext"
)

// unpadded leaves out the blanks with which help fills its lines, which only a coloured terminal needs.
type unpadded struct {
	w    io.Writer
	line []byte // what has come of a line that is not whole yet
}

// Write passes on whole lines.
func (u *unpadded) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		end := bytes.IndexByte(b[n:], '\n')
		if end < 0 {
			u.line = append(u.line, b[n:]...)
			break
		}
		u.line = append(u.line, b[n:n+end]...)
		if _, err := u.w.Write(append(bytes.TrimRight(u.line, " "), '\n')); err != nil {
			return n, err
		}
		u.line, n = u.line[:0], n+end+1
	}
	return len(b), nil
}

func (u *unpadded) flush() { _, _ = u.w.Write(u.line) }

// line and text make what came from others harmless: one line, or many.
func line(s string) string { return safetext.SafeLine(s) }

func text(s string) string { return safetext.SafeText(s) }

// result prints v as JSON when that was asked for, else lets human write.
func (a *app) result(v any, human func(w io.Writer)) error {
	if a.json {
		return a.printJSON(v)
	}
	var out bytes.Buffer
	human(&out)
	_, err := a.env.Stdout.Write(out.Bytes())
	return err
}

// printJSON writes one line of JSON, or what --jq makes of it.
func (a *app) printJSON(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	if a.jq == "" {
		_, err = fmt.Fprintf(a.env.Stdout, "%s\n", escape(raw))
		return err
	}
	return a.printJQ(raw)
}

// escape writes characters that could harm a terminal as \u escapes: the same JSON, safe to look at.
func escape(raw []byte) []byte {
	var out bytes.Buffer
	marks := 0
	for i := 0; i < len(raw); {
		r, n := utf8.DecodeRune(raw[i:])
		if unicode.Is(unicode.M, r) {
			marks++
		} else {
			marks = 0
		}
		switch {
		case r < utf8.RuneSelf && r != 0x7f, !safetext.Hidden(r) && marks <= safetext.MaxMarks:
			out.Write(raw[i : i+n])
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
		i += n
	}
	return out.Bytes()
}

// compileJQ finds mistakes in --jq before anything is done.
func (a *app) compileJQ() error {
	if a.jq == "" {
		return nil
	}
	q, err := gojq.Parse(a.jq)
	if err == nil {
		_, err = gojq.Compile(q)
	}
	if err != nil {
		return usage("Correct the expression; see https://jqlang.org/manual", "--jq: %v", err)
	}
	return nil
}

func (a *app) printJQ(raw []byte) error {
	q, err := gojq.Parse(a.jq)
	if err != nil {
		return usage("Correct the expression.", "--jq: %v", err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var in any
	if err := dec.Decode(&in); err != nil {
		return fmt.Errorf("decode the result: %w", err)
	}
	for it := q.Run(in); ; {
		v, ok := it.Next()
		if !ok {
			return nil
		}
		switch v := v.(type) {
		case error:
			return control.Errorf(control.ExitFailed, "jq_failed", "See what it works on: the same command with --json", "--jq: %v", v)
		case string: // raw, as jq -r does; a terminal gets it made safe
			if tty(a.env.Stdout) {
				v = text(v)
			}
			if _, err := fmt.Fprintln(a.env.Stdout, v); err != nil {
				return err
			}
		default:
			b, err := gojq.Marshal(v)
			if err != nil {
				return fmt.Errorf("encode what --jq made: %w", err)
			}
			if _, err := fmt.Fprintf(a.env.Stdout, "%s\n", escape(b)); err != nil {
				return err
			}
		}
	}
}

func (a *app) printError(e *control.Error) {
	if raw, err := json.Marshal(map[string]*control.Error{"error": e}); err == nil {
		_, _ = fmt.Fprintf(a.env.Stderr, "%s\n", escape(raw))
	}
}

// table writes rows: aligned under headings for people, tab-separated without them for programs. Cells are made safe here.
func (a *app) table(w io.Writer, headings []string, rows [][]string) {
	for _, row := range rows {
		for i := range row {
			row[i] = line(row[i])
		}
	}
	if !tty(a.env.Stdout) {
		for _, row := range rows {
			_, _ = fmt.Fprintln(w, strings.Join(row, "\t"))
		}
		return
	}
	widths := make([]int, len(headings))
	all := append([][]string{headings}, rows...)
	for _, row := range all {
		for i, cell := range row {
			widths[i] = max(widths[i], lipgloss.Width(cell))
		}
	}
	for n, row := range all {
		var out strings.Builder
		for i, cell := range row {
			out.WriteString(cell)
			if i < len(row)-1 {
				out.WriteString(strings.Repeat(" ", widths[i]-lipgloss.Width(cell)+2))
			}
		}
		if n == 0 {
			_, _ = fmt.Fprintln(w, a.bold(out.String()))
			continue
		}
		_, _ = fmt.Fprintln(w, out.String())
	}
}

// bold marks headings where colour is welcome.
func (a *app) bold(s string) string {
	on := tty(a.env.Stdout) && a.env.Getenv("NO_COLOR") == "" && a.env.Getenv("TERM") != "dumb"
	if a.color == "always" || on && a.color != "never" {
		return "\x1b[1m" + s + "\x1b[m"
	}
	return s
}

// mark shows a message's state: a sign for people, the word for programs and --ascii.
func (a *app) mark(m control.Message) string {
	if !m.From.Me {
		return ""
	}
	if a.ascii || !tty(a.env.Stdout) {
		return m.State
	}
	switch m.State {
	case control.StateQueued:
		return "·"
	case control.StateHeld:
		if m.Held != nil {
			return fmt.Sprintf("⇡ %d/%d", m.Held.By, m.Held.Of)
		}
		return "⇡"
	case control.StateDelivered:
		return "✓✓"
	case control.StateRead:
		return "✓✓ read"
	default:
		return "✗ " + m.State
	}
}

// clock times for people: local, and as short as the day allows.
func (a *app) when(t time.Time) string {
	now, t := a.clock.Now().Local(), t.Local()
	switch {
	case t.IsZero():
		return ""
	case now.Year() == t.Year() && now.YearDay() == t.YearDay():
		return t.Format("15:04")
	case now.Year() == t.Year():
		return t.Format("2 Jan 15:04")
	default:
		return t.Format("2 Jan 2006 15:04")
	}
}

// stamp is a time in a table: short for people, RFC 3339 in UTC for programs.
func (a *app) stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	if tty(a.env.Stdout) {
		return a.when(t)
	}
	return t.UTC().Format(time.RFC3339)
}

// shortID is what people type: unique beginnings work everywhere.
func shortID(id string) string { return id[:min(len(id), 9)] }

// spoken is a message as one person reads it. Further lines are set in, so that no text can look like another's line.
func (a *app) spoken(m control.Message) string {
	body := text(m.Text)
	switch {
	case m.Kind == "unknown":
		body = "(a kind of message that needs a newer version)"
	case m.ReplyTo != nil:
		body = "(to " + shortID(*m.ReplyTo) + ") " + body
	}
	body = strings.ReplaceAll(strings.TrimRight(body, "\n"), "\n", "\n      ")
	out := fmt.Sprintf("%s %s> %s", a.when(m.SentAt), line(m.From.Name), body)
	if m.Edited {
		out += " (edited)"
	}
	if sign := a.mark(m); sign != "" {
		out += "  " + sign
	}
	if m.Missing > 0 {
		out = fmt.Sprintf("      (%d of %s's messages have not arrived)\n", m.Missing, line(m.From.Name)) + out
	}
	return out
}
