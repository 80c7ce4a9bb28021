package identity

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/zalando/go-keyring"
	"golang.org/x/crypto/argon2"

	"sotto/internal/canon"
)

// LockKind is how a key file is locked.
type LockKind uint8

// The kinds of lock.
const (
	LockNone       LockKind = 0 // not at all: whoever reads the file has everything
	LockPassphrase LockKind = 1 // Argon2id of a passphrase
	LockKeyring    LockKind = 2 // a random key that the system keyring keeps
)

// String names the lock as status and errors do.
func (k LockKind) String() string {
	switch k {
	case LockNone:
		return "none (unencrypted)"
	case LockPassphrase:
		return "passphrase"
	case LockKeyring:
		return "system keyring"
	}
	return fmt.Sprintf("unknown (%d)", uint8(k))
}

// Lock locks a key file when it is written: Passphrase, Keyring or Unencrypted.
type Lock interface {
	kind() LockKind
	// wrap draws what the lock needs; a nil key leaves the body in the clear.
	wrap() (params, key []byte, entry keyringEntry, err error)
}

// Unlock opens a key file when it is read.
type Unlock struct {
	// Passphrase is asked only when the file is locked with one; nil means that nobody can be asked.
	Passphrase func() ([]byte, error)
	// Again is told that the passphrase was wrong, and whether it is asked for once more is its answer; nil means that it is not.
	Again func() bool
}

// WithPassphrase is an Unlock for a passphrase already at hand.
func WithPassphrase(p []byte) Unlock {
	return Unlock{Passphrase: func() ([]byte, error) { return p, nil }}
}

// MaxPassphrase is the longest passphrase, in bytes.
const MaxPassphrase = 1024

// CheckPassphrase refuses what no keyboard would give: nothing, more than 1 KiB, a zero byte.
func CheckPassphrase(p []byte) error {
	switch {
	case len(p) == 0:
		return told{"the passphrase is empty", ErrInvalid}
	case len(p) > MaxPassphrase:
		return told{fmt.Sprintf("the passphrase has %d bytes, and at most %d are taken", len(p), MaxPassphrase), ErrInvalid}
	case bytes.IndexByte(p, 0) >= 0:
		return told{"the passphrase holds a zero byte", ErrInvalid}
	}
	return nil
}

// kdfCost is what one guess costs.
type kdfCost struct {
	memory  uint32 // KiB
	time    uint32 // passes
	threads uint8
}

// kdfBounds is what a file may ask for: less would be a downgrade, more an attack on the reader's memory.
type kdfBounds struct{ least, most kdfCost }

// kdfDefault costs about a tenth of a second and 64 MiB per guess.
const (
	kdfMemory  = 64 * 1024
	kdfTime    = 3
	kdfThreads = 4
	kdfSalt    = 16
)

var kdfLimits = kdfBounds{
	least: kdfCost{memory: kdfMemory, time: kdfTime, threads: 1},
	most:  kdfCost{memory: 1024 * 1024, time: 16, threads: 16},
}

// check is done before any memory is taken.
func (b kdfBounds) check(c kdfCost) error {
	if c.memory < b.least.memory || c.time < b.least.time || c.threads < b.least.threads ||
		c.memory > b.most.memory || c.time > b.most.time || c.threads > b.most.threads {
		return fmt.Errorf("%w: Argon2id with %d KiB, %d passes, %d threads is outside what is allowed", ErrKeyFileDamaged, c.memory, c.time, c.threads)
	}
	return nil
}

// Passphrase locks with Argon2id.
func Passphrase(p []byte) Lock {
	return passphraseLock{pass: p, cost: kdfCost{memory: kdfMemory, time: kdfTime, threads: kdfThreads}}
}

type passphraseLock struct {
	hidden
	pass []byte
	cost kdfCost
}

func (passphraseLock) kind() LockKind { return LockPassphrase }

func (l passphraseLock) wrap() ([]byte, []byte, keyringEntry, error) {
	if err := CheckPassphrase(l.pass); err != nil {
		return nil, nil, keyringEntry{}, err
	}
	salt, err := draw(rand.Reader, "salt", kdfSalt)
	if err != nil {
		return nil, nil, keyringEntry{}, err
	}
	var w canon.Writer
	w.U32(l.cost.memory).U32(l.cost.time).U8(l.cost.threads).Raw(salt)
	return w.Bytes(), l.cost.key(l.pass, salt), keyringEntry{}, nil
}

func (c kdfCost) key(pass, salt []byte) []byte {
	return argon2.IDKey(pass, salt, c.time, c.memory, c.threads, 32)
}

// Keyring locks with a random key that the system keyring keeps under service and user.
func Keyring(service, user string) Lock { return keyringLock{service, user} }

type keyringLock struct{ service, user string }

func (keyringLock) kind() LockKind { return LockKeyring }

const maxKeyringName = 128

func (l keyringLock) wrap() ([]byte, []byte, keyringEntry, error) {
	if l.service == "" || len(l.service) > maxKeyringName || len(l.user) > maxKeyringName {
		return nil, nil, keyringEntry{}, fmt.Errorf("keyring names: 1 to %d bytes: %w", maxKeyringName, ErrInvalid)
	}
	b, err := draw(rand.Reader, "wrapping key", 8+32)
	if err != nil {
		return nil, nil, keyringEntry{}, err
	}
	// Each file has an entry of its own: a crash between the two writes must not leave the old file without its key.
	e := keyringEntry{service: l.service, user: l.user, id: [8]byte(b[:8])}
	if err := keyring.Set(e.service, e.name(), hex.EncodeToString(b[8:])); err != nil {
		return nil, nil, keyringEntry{}, keyringError(err)
	}
	var w canon.Writer
	w.LP([]byte(e.service)).LP([]byte(e.user)).Raw(e.id[:])
	return w.Bytes(), b[8:], e, nil
}

// TryKeyring reports whether the system keyring keeps a key under a lock made by Keyring; what it wrote for that is removed.
func TryKeyring(l Lock) error {
	_, _, e, err := l.wrap()
	if err == nil {
		e.forget()
	}
	return err
}

// KeyringLikely reports whether a system keyring could be asked: elsewhere than on macOS and Windows that takes a desktop's session.
func KeyringLikely(getenv func(string) string) bool {
	if runtime.GOOS == "darwin" || runtime.GOOS == "windows" || getenv("DBUS_SESSION_BUS_ADDRESS") != "" {
		return true
	}
	for _, name := range []string{"bus", "dbus-session"} { // where the bus is looked for when the environment does not name it
		if _, err := os.Stat(filepath.Join("/run/user", strconv.Itoa(os.Getuid()), name)); err == nil {
			return true
		}
	}
	return false
}

// keyringError is why the keyring could not be used, in words that help: without a session the library tries to start one.
func keyringError(err error) error {
	if !KeyringLikely(os.Getenv) {
		return fmt.Errorf("%w: there is no desktop session here that has one", ErrKeyring)
	}
	return fmt.Errorf("%w: %w", ErrKeyring, err)
}

// keyringEntry is where in the keyring a file's key is.
type keyringEntry struct {
	service, user string
	id            [8]byte
}

func (e keyringEntry) name() string { return e.user + "-" + hex.EncodeToString(e.id[:]) }

// forget removes the key, as well as it can: one left behind opens nothing any more.
func (e keyringEntry) forget() { _ = keyring.Delete(e.service, e.name()) }

// Unencrypted leaves the key file open to whoever can read it. It exists for tests, demos and disks that are encrypted
// as a whole, and is never chosen for anybody.
func Unencrypted() Lock { return openLock{} }

type openLock struct{}

func (openLock) kind() LockKind { return LockNone }

func (openLock) wrap() ([]byte, []byte, keyringEntry, error) { return nil, nil, keyringEntry{}, nil }

// unwrap gets the key that opens the file's body; nil for an unencrypted one.
func unwrap(p keyFileParts, unlock Unlock, limits kdfBounds) ([]byte, keyringEntry, error) {
	r := canon.NewReader(p.params)
	switch p.kind {
	case LockNone:
		return nil, keyringEntry{}, damaged(r.Close())
	case LockPassphrase:
		cost := kdfCost{memory: r.U32(), time: r.U32(), threads: r.U8()}
		salt := r.Raw(kdfSalt)
		if err := damaged(r.Close()); err != nil {
			return nil, keyringEntry{}, err
		}
		if err := limits.check(cost); err != nil {
			return nil, keyringEntry{}, err
		}
		key, err := askPassphrase(unlock, cost, salt)
		return key, keyringEntry{}, err
	case LockKeyring:
		e := keyringEntry{service: string(r.LP(maxKeyringName)), user: string(r.LP(maxKeyringName))}
		r.Copy(e.id[:])
		if err := damaged(r.Close()); err != nil {
			return nil, keyringEntry{}, err
		}
		key, err := e.fetch()
		return key, e, err
	}
	return nil, keyringEntry{}, fmt.Errorf("lock %d: %w", p.kind, ErrNewer)
}

func askPassphrase(unlock Unlock, cost kdfCost, salt []byte) ([]byte, error) {
	if unlock.Passphrase == nil {
		return nil, ErrLocked
	}
	pass, err := unlock.Passphrase()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("ask for the passphrase: %w", err)
	}
	if CheckPassphrase(pass) != nil {
		return nil, ErrWrongPassphrase // no file was ever locked with it
	}
	return cost.key(pass, salt), nil
}

// fetch asks the system keyring for the key.
func (e keyringEntry) fetch() ([]byte, error) {
	text, err := keyring.Get(e.service, e.name())
	if err != nil {
		return nil, fmt.Errorf("get %q of %q: %w", e.name(), e.service, keyringError(err))
	}
	key, err := hex.DecodeString(text)
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("%w: %q of %q is not a key: put back what was stored there", ErrKeyring, e.name(), e.service)
	}
	return key, nil
}

// wrongKey is what a body that does not open means.
func wrongKey(kind LockKind) error {
	if kind == LockPassphrase {
		return ErrWrongPassphrase
	}
	return fmt.Errorf("%w: it holds the key of another file", ErrKeyring)
}

func damaged(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKeyFileDamaged, err)
	}
	return nil
}
