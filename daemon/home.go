package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/adrg/xdg"

	"sotto/control"
	"sotto/identity"
)

// DefaultProfile is the identity used when none is named.
const DefaultProfile = "main"

// Home is where one identity's files are.
type Home struct {
	Profile string
	Config  string // config.toml, the person's own file
	Data    string // key file and store
	State   string // log
	Socket  string
}

// Where chooses a home: Dir, when set, holds everything; else the XDG directories do, each profile in its own part.
type Where struct {
	Dir     string
	Profile string
	Socket  string // overrides the home's own
	Getenv  func(string) string
}

// Locate finds the home without touching it.
func Locate(w Where) (Home, error) {
	if w.Profile == "" {
		w.Profile = DefaultProfile
	}
	if err := checkProfile(w.Profile); err != nil {
		return Home{}, err
	}
	h, err := w.home()
	if err != nil {
		return Home{}, err
	}
	h.Profile = w.Profile
	if w.Socket != "" {
		if h.Socket, err = filepath.Abs(w.Socket); err != nil {
			return Home{}, fmt.Errorf("find socket %s: %w", w.Socket, err)
		}
	}
	return h, nil
}

func (w Where) home() (Home, error) {
	if w.Dir == "" {
		part := filepath.Join("sotto", w.Profile)
		h := Home{Config: filepath.Join(xdg.ConfigHome, "sotto"), Data: filepath.Join(xdg.DataHome, part), State: filepath.Join(xdg.StateHome, part)}
		if w.Profile != DefaultProfile {
			h.Config = filepath.Join(xdg.ConfigHome, part)
		}
		h.Config = filepath.Join(h.Config, "config.toml")
		h.Socket = w.socket(h.Data, w.Getenv("XDG_RUNTIME_DIR"), w.Profile+".sock")
		return h, nil
	}
	dir, err := filepath.Abs(w.Dir)
	if err != nil {
		return Home{}, fmt.Errorf("find home %s: %w", w.Dir, err)
	}
	if w.Profile != DefaultProfile {
		dir = filepath.Join(dir, "profiles", w.Profile)
	}
	h := Home{Config: filepath.Join(dir, "config.toml"), Data: filepath.Join(dir, "data"), State: filepath.Join(dir, "state")}
	h.Socket = filepath.Join(dir, "run", "sotto.sock")
	if len(h.Socket) > control.MaxPath {
		h.Socket = w.socket(h.Data, w.Getenv("XDG_RUNTIME_DIR"), "")
	}
	return h, nil
}

// socket is a short path in a directory of this user's own: the system's runtime directory, or one under the temporary
// directory. Without a name it is called after the data directory, which it serves.
func (w Where) socket(data, runtime, name string) string {
	if name == "" {
		sum := sha256.Sum256([]byte(data))
		name = hex.EncodeToString(sum[:6]) + ".sock"
	}
	if runtime != "" {
		if p := filepath.Join(runtime, "sotto", name); len(p) <= control.MaxPath {
			return p
		}
	}
	dir := "sotto-" + strconv.Itoa(os.Getuid())
	if p := filepath.Join(os.TempDir(), dir, name); len(p) <= control.MaxPath {
		return p
	}
	return filepath.Join("/tmp", dir, name)
}

func checkProfile(name string) error {
	ok := len(name) <= 32 && name[0] != '-'
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_", r))
	}
	if !ok {
		return control.Errorf(control.ExitUsage, "bad_profile", "Use letters, digits, - and _, at most 32.", "%q cannot name a profile", name)
	}
	return nil
}

// KeyFile is the one file that must be kept and kept secret.
func (h Home) KeyFile() string { return filepath.Join(h.Data, "identity.key") }

// Store is the database's directory.
func (h Home) Store() string { return filepath.Join(h.Data, "store") }

// Log is the log file.
func (h Home) Log() string { return filepath.Join(h.State, "sotto.log") }

// Output is where a node in the background says what it would say to a terminal.
func (h Home) Output() string { return filepath.Join(h.State, "up.out") }

// Exists reports whether an identity was made here.
func (h Home) Exists() bool {
	_, err := os.Lstat(h.KeyFile())
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

// Lock tells how the key file is locked, without unlocking it.
func (h Home) Lock() (identity.LockKind, error) {
	kind, err := identity.KeyFileLock(h.KeyFile())
	return kind, lockedError(h.KeyFile(), err)
}

// why is what is in the way of a file, without the file's name.
func why(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

// makeDirs makes the directories that hold secrets, closed to everyone else.
func (h Home) makeDirs() error {
	for _, dir := range []string{h.Data, h.State} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return control.Errorf(control.ExitFailed, "home_not_made", "Choose a directory that can be made, with --home.", "cannot make the directory %s: %v", dir, why(err))
		}
		info, err := os.Lstat(dir)
		if err != nil {
			return fmt.Errorf("check directory %s: %w", dir, err)
		}
		if !info.IsDir() {
			return control.Errorf(control.ExitFailed, "unsafe_directory", "Give the real directory with --home.", "%s is not a plain directory", dir)
		}
		if info.Mode().Perm()&0o077 != 0 {
			if err := os.Chmod(dir, 0o700); err != nil {
				return fmt.Errorf("close directory %s to others: %w", dir, err)
			}
		}
	}
	return nil
}
