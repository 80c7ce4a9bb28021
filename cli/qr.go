package cli

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"rsc.io/qr"

	"sotto/control"
)

// inviteOptions say in which forms an invite is shown besides its link.
type inviteOptions struct {
	qr, copy bool
	png      string
	picture  *os.File // what png names, open before there is an invite
	drawn    bool
}

// prepare refuses what cannot be shown before an invite is made for it.
func (a *app) prepare(o *inviteOptions) (err error) {
	if o.copy && !tty(a.env.Stderr) {
		return usage("Run it in a terminal.", "--copy goes through the terminal, and there is none")
	}
	if o.png == "" {
		return nil
	}
	o.picture, err = os.OpenFile(o.png, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return control.Errorf(control.ExitFailed, "file_exists", "Choose a new file.", "cannot write the QR code: %s exists already", o.png)
	case errors.Is(err, fs.ErrNotExist):
		return control.Errorf(control.ExitFailed, "no_directory", "Make the directory first, or choose another.", "cannot write the QR code: there is no directory %s", filepath.Dir(o.png))
	case err != nil:
		return control.Errorf(control.ExitFailed, "file_not_made", "Choose a file that you may write.", "cannot write the QR code: %v", err)
	}
	return nil
}

// finish closes the picture, and takes an empty one away.
func (o *inviteOptions) finish() error {
	if o.picture == nil {
		return nil
	}
	err := o.picture.Close()
	if !o.drawn {
		err = errors.Join(err, os.Remove(o.png))
	}
	return err
}

// showInvite prints the link alone on its line, and what else was asked for.
func (a *app) showInvite(inv control.Invite, o *inviteOptions) error {
	if _, err := fmt.Fprintln(a.env.Stdout, inv.Link); err != nil {
		return err
	}
	if o.copy {
		_, _ = fmt.Fprintf(a.env.Stderr, "\x1b]52;c;%s\a", base64.StdEncoding.EncodeToString([]byte(inv.Link))) // OSC 52
		a.say("(copied, if your terminal allows it)")
	}
	if o.qr {
		code, err := qr.Encode(inv.QR, qr.L)
		if err != nil {
			return fmt.Errorf("draw the QR code: %w", err)
		}
		drawing := blocks(code)
		if a.ascii {
			drawing = letters(code)
		}
		if _, err := fmt.Fprint(a.env.Stdout, drawing); err != nil {
			return err
		}
	}
	return o.keepQR(inv)
}

// keepQR writes the code as a picture; the file is as secret as the link.
func (o *inviteOptions) keepQR(inv control.Invite) error {
	if o.picture == nil || o.drawn {
		return nil
	}
	code, err := qr.Encode(inv.QR, qr.L)
	if err != nil {
		return fmt.Errorf("draw the QR code: %w", err)
	}
	if _, err := o.picture.Write(code.PNG()); err != nil {
		return fmt.Errorf("write the QR code: %w", err)
	}
	o.drawn = true
	return nil
}

// margin is how many light modules surround a code.
const margin = 2

// letters draws a code with # alone, two for each dark module, for terminals that have no blocks. On a dark background it
// comes out inverted, which most readers take.
func letters(code *qr.Code) string {
	var out strings.Builder
	for y := -margin; y < code.Size+margin; y++ {
		for x := -margin; x < code.Size+margin; x++ {
			if code.Black(x, y) {
				out.WriteString("##")
			} else {
				out.WriteString("  ")
			}
		}
		out.WriteString("\n")
	}
	return out.String()
}

// blocks draws two rows of a code in one line of text, dark on light with a margin of two, so that cameras read it on any theme.
func blocks(code *qr.Code) string {
	var out strings.Builder
	for y := -margin; y < code.Size+margin; y += 2 {
		out.WriteString("\x1b[30;107m")
		for x := -margin; x < code.Size+margin; x++ {
			switch upper, lower := code.Black(x, y), code.Black(x, y+1); {
			case upper && lower:
				out.WriteString("█")
			case upper:
				out.WriteString("▀")
			case lower:
				out.WriteString("▄")
			default:
				out.WriteString(" ")
			}
		}
		out.WriteString("\x1b[m\n")
	}
	return out.String()
}
