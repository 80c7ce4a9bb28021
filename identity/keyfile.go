package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/crypto/chacha20poly1305"

	"sotto/internal/canon"
)

// Errors of the key file that callers branch on.
var (
	// ErrWrongPassphrase: the file is whole, the passphrase is not the one it was locked with.
	ErrWrongPassphrase = errors.New("wrong passphrase")
	// ErrLocked: the file is locked with a passphrase and nobody gave one.
	ErrLocked = errors.New("key file is locked: a passphrase is needed")
	// ErrKeyring: the system keyring cannot be used, or no longer holds the key.
	ErrKeyring = errors.New("system keyring not usable")
	// ErrKeyFileDamaged: the bytes are not a whole key file.
	ErrKeyFileDamaged = errors.New("key file is damaged: restore it from a backup")
	// ErrKeyFileExists: there is an identity already, and it is not overwritten.
	ErrKeyFileExists = errors.New("a key file is there already")
	// ErrKeyFileMode: other users of this computer could read or change the file.
	ErrKeyFileMode = errors.New("key file is open to other users")
)

// KeyFile is the one file that must not be lost or shown: the seed, and the root of the keys that seal the store.
// PROTOCOL Appendix A.1 gives every byte.
type KeyFile struct {
	path    string
	kind    LockKind
	entry   keyringEntry // where the wrapping key is, for a keyring lock
	secrets *keySecrets  // behind a pointer, so that printing a KeyFile shows an address at most
	hidden
}

type keySecrets struct {
	seed Seed
	root [32]byte
}

// Key file layout (PROTOCOL A.7).
const (
	keyMagic      = "sottokey"
	keyVersion    = 1
	maxKeyFile    = 4096
	maxLockParams = 512
	keyBodySize   = 32 + 32 // seed, root
)

// CreateKeyFile writes a new key file for a seed, with a fresh random root. It never overwrites one.
func CreateKeyFile(path string, seed Seed, lock Lock) (*KeyFile, error) {
	k := &KeyFile{path: path, secrets: &keySecrets{seed: seed}}
	if _, err := io.ReadFull(rand.Reader, k.secrets.root[:]); err != nil {
		return nil, fmt.Errorf("create key file: %w", err)
	}
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("create key file %s: %w", path, ErrKeyFileExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("create key file: %w", err)
	}
	if err := k.write(lock, placeNew); err != nil {
		return nil, fmt.Errorf("create key file %s: %w", path, err)
	}
	return k, nil
}

// OpenKeyFile reads and unlocks a key file.
func OpenKeyFile(path string, unlock Unlock) (*KeyFile, error) {
	data, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("open key file %s: %w", path, err)
	}
	k, err := decodeKeyFile(data, unlock, kdfLimits)
	for errors.Is(err, ErrWrongPassphrase) && unlock.Again != nil && unlock.Again() {
		k, err = decodeKeyFile(data, unlock, kdfLimits)
	}
	if err != nil {
		return nil, fmt.Errorf("open key file %s: %w", path, err)
	}
	k.path = path
	return k, nil
}

// KeyFileLock tells how the file at path is locked, without unlocking it.
func KeyFileLock(path string) (LockKind, error) {
	data, err := readKeyFile(path)
	if err != nil {
		return 0, fmt.Errorf("read key file %s: %w", path, err)
	}
	p, err := parseKeyFile(data)
	if err != nil {
		return 0, fmt.Errorf("read key file %s: %w", path, err)
	}
	return p.kind, nil
}

// Seed is the account's seed.
func (k *KeyFile) Seed() Seed { return k.secrets.seed }

// Root is the random key from which the store's keys come. Unlike the seed it cannot be had from the 24 words, so a
// copied database stays closed to whoever finds only the paper.
func (k *KeyFile) Root() [32]byte { return k.secrets.root }

// Lock is how the file is locked.
func (k *KeyFile) Lock() LockKind { return k.kind }

// Equal compares the secrets in constant time.
func (k *KeyFile) Equal(o *KeyFile) bool {
	return k.secrets.seed.Equal(o.secrets.seed) && subtle.ConstantTimeCompare(k.secrets.root[:], o.secrets.root[:]) == 1
}

// Rewrap locks the same secrets in another way. The old file stays until the new one is on the disk.
func (k *KeyFile) Rewrap(lock Lock) error {
	old := k.entry
	if err := k.write(lock, placeOver); err != nil {
		return fmt.Errorf("lock key file %s anew: %w", k.path, err)
	}
	if old != (keyringEntry{}) {
		old.forget() // the old file is gone, so its key is of no use to anybody
	}
	return nil
}

// write locks the secrets and puts the file in its place.
func (k *KeyFile) write(lock Lock, place func(temp, path string) error) error {
	wrapped, entry, err := k.encode(lock)
	if err != nil {
		return err
	}
	if err := writeFile(k.path, wrapped, place); err != nil {
		if entry != (keyringEntry{}) {
			entry.forget()
		}
		return err
	}
	k.kind, k.entry = lock.kind(), entry
	return nil
}

// encode is the file's bytes: magic, version, lock and its parameters, body, checksum.
func (k *KeyFile) encode(lock Lock) ([]byte, keyringEntry, error) {
	params, key, entry, err := lock.wrap()
	if err != nil {
		return nil, keyringEntry{}, err
	}
	var w canon.Writer
	w.Raw([]byte(keyMagic)).U8(keyVersion).U8(uint8(lock.kind())).LP(params)
	body := append(k.secrets.seed[:len(k.secrets.seed):len(k.secrets.seed)], k.secrets.root[:]...)
	if key != nil {
		if body, err = seal(key, body, w.Bytes()); err != nil {
			return nil, keyringEntry{}, err
		}
	}
	w.LP(body)
	sum := sha256.Sum256(w.Bytes())
	return w.Raw(sum[:]).Bytes(), entry, nil
}

// seal is XChaCha20-Poly1305 with a random nonce in front.
func seal(key, plain, ad []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	if _, err := io.ReadFull(rand.Reader, nonce); err != nil {
		return nil, fmt.Errorf("draw nonce: %w", err)
	}
	return aead.Seal(nonce, nonce, plain, ad), nil
}

// keyFileParts is a key file before it is unlocked.
type keyFileParts struct {
	kind   LockKind
	params []byte
	header []byte // everything before the body: the associated data
	body   []byte
}

// parseKeyFile checks layout and checksum.
func parseKeyFile(data []byte) (keyFileParts, error) {
	if len(data) > maxKeyFile {
		return keyFileParts{}, fmt.Errorf("%w: %d bytes", ErrKeyFileDamaged, len(data))
	}
	r := canon.NewReader(data)
	if magic := r.Raw(len(keyMagic)); string(magic) != keyMagic {
		return keyFileParts{}, fmt.Errorf("%w: it does not begin as a key file", ErrKeyFileDamaged)
	}
	version := r.U8()
	if n := len(data) - sha256.Size; n < 0 || sha256.Sum256(data[:n]) != [32]byte(data[n:]) {
		if version > keyVersion {
			return keyFileParts{}, fmt.Errorf("key file format %d: %w", version, ErrNewer)
		}
		return keyFileParts{}, fmt.Errorf("%w: checksum", ErrKeyFileDamaged)
	}
	if err := readVersionByte(version); err != nil {
		return keyFileParts{}, err
	}
	p := keyFileParts{kind: LockKind(r.U8()), params: r.LP(maxLockParams)}
	p.header = data[:len(data)-r.Len()]
	p.body = r.LP(maxLockParams)
	r.Raw(sha256.Size)
	if err := r.Close(); err != nil {
		return keyFileParts{}, fmt.Errorf("%w: %w", ErrKeyFileDamaged, err)
	}
	return p, nil
}

func readVersionByte(v uint8) error {
	switch {
	case v > keyVersion:
		return fmt.Errorf("key file format %d: %w", v, ErrNewer)
	case v == 0:
		return fmt.Errorf("%w: format 0", ErrKeyFileDamaged)
	}
	return nil
}

// decodeKeyFile unlocks a key file's bytes.
func decodeKeyFile(data []byte, unlock Unlock, limits kdfBounds) (*KeyFile, error) {
	p, err := parseKeyFile(data)
	if err != nil {
		return nil, err
	}
	key, entry, err := unwrap(p, unlock, limits)
	if err != nil {
		return nil, err
	}
	body := p.body
	if key != nil {
		aead, err := chacha20poly1305.NewX(key)
		if err != nil || len(body) < aead.NonceSize() {
			return nil, fmt.Errorf("%w: body", ErrKeyFileDamaged)
		}
		if body, err = aead.Open(nil, body[:aead.NonceSize()], body[aead.NonceSize():], p.header); err != nil {
			return nil, wrongKey(p.kind)
		}
	}
	if len(body) != keyBodySize {
		return nil, fmt.Errorf("%w: body", ErrKeyFileDamaged)
	}
	return &KeyFile{kind: p.kind, entry: entry, secrets: &keySecrets{seed: Seed(body[:32]), root: [32]byte(body[32:])}}, nil
}

// readKeyFile reads a bounded regular file that only its owner may touch.
func readKeyFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: not a regular file", ErrKeyFileDamaged)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w (mode %04o)", ErrKeyFileMode, info.Mode().Perm())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxKeyFile+1))
}

// writeFile makes the bytes durable under a temporary name first, so that a crash leaves the old file or the new one.
func writeFile(path string, data []byte, place func(temp, path string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".key-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing is left to remove once it is in place
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// placeOver replaces whatever is at path.
func placeOver(temp, path string) error { return os.Rename(temp, path) }

// placeNew fails when something is at path already; two first runs at once cannot overwrite each other's identity.
func placeNew(temp, path string) error {
	err := os.Link(temp, path)
	if errors.Is(err, fs.ErrExist) {
		return ErrKeyFileExists
	}
	if err != nil { // a file system without hard links
		return os.Rename(temp, path)
	}
	return nil
}

// syncDir makes the new name durable. Windows has no such call and needs none.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
