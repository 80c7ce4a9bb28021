package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/zalando/go-keyring"

	"sotto/internal/canon"
)

var fixedRoot = [32]byte{0x52, 0x6f, 0x6f, 0x74}

// cheap is a passphrase lock that costs nothing, for tests of everything but the cost.
func cheap(pass string) Lock { return passphraseLock{pass: []byte(pass), cost: cheapCost} }

var (
	cheapCost   = kdfCost{memory: 32, time: 1, threads: 1}
	cheapLimits = kdfBounds{least: cheapCost, most: kdfLimits.most}
)

// fixedKeyFile is the bytes of a key file with the fixed root.
func fixedKeyFile(seed Seed, lock Lock) []byte {
	k := &KeyFile{secrets: &keySecrets{seed: seed, root: fixedRoot}}
	data, _, err := k.encode(lock)
	if err != nil {
		panic(err)
	}
	return data
}

// fixedPassphraseFile is a key file of seed "ana" and the fixed root, locked with "correct horse" at the default cost.
const fixedPassphraseFile = "736f74746f6b6579010100000019000100000000000304c574a49c0c40644b189ddeb896139e4a000000684cd6c6b1457a253a33f55358647e94704d36b4d278029c7bea2e3580c4494fe6cfbaef18620dd27eaa2f516f4df44bf824d7886083ec20f3ef268290d2c0958325660bbc3ce1e9cf725046d12be70d9236951dd07699b20a95764c4385b52601091eeb5c94e5f9f3cf8b5eca22b0290a992c95405b58a919c3a59a4a7479ab537aefaaa1bb71a032"

func TestAKeyFileOpensWithItsPassphraseAndNoOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	p := newPerson("ana")
	k, err := CreateKeyFile(path, p.seed, Passphrase([]byte("correct horse")))
	if err != nil {
		t.Fatal(err)
	}
	back, err := OpenKeyFile(path, WithPassphrase([]byte("correct horse")))
	if err != nil || !back.Equal(k) || !back.Seed().Equal(p.seed) || back.Lock() != LockPassphrase {
		t.Fatalf("opened %v with %v", back, err)
	}
	if _, err := OpenKeyFile(path, WithPassphrase([]byte("correct house"))); !errors.Is(err, ErrWrongPassphrase) {
		t.Errorf("another passphrase: %v", err)
	}
	if _, err := OpenKeyFile(path, Unlock{}); !errors.Is(err, ErrLocked) {
		t.Errorf("no passphrase: %v", err)
	}
	if kind, err := KeyFileLock(path); err != nil || kind != LockPassphrase {
		t.Errorf("lock is %v, %v", kind, err)
	}
}

func TestTheKeyFileOfTheVectorOpens(t *testing.T) {
	k, err := decodeKeyFile(must(hex.DecodeString(fixedPassphraseFile)), WithPassphrase([]byte("correct horse")), kdfLimits)
	if err != nil || !k.Seed().Equal(newPerson("ana").seed) || k.Root() != fixedRoot {
		t.Fatalf("vector opens as %v, %v", k, err)
	}
}

func TestUnusualPassphrasesAreRefusedWithoutHashingThem(t *testing.T) {
	data := fixedKeyFile(Seed{1}, cheap("pass"))
	for name, pass := range map[string][]byte{
		"empty": nil, "1 MB": bytes.Repeat([]byte("x"), 1<<20), "with NUL": []byte("pa\x00ss"), "1 KiB and one": bytes.Repeat([]byte("x"), 1025),
	} {
		if _, _, _, err := Passphrase(pass).wrap(); !errors.Is(err, ErrInvalid) {
			t.Errorf("locking with a passphrase that is %s: %v", name, err)
		}
		if _, err := decodeKeyFile(data, WithPassphrase(pass), cheapLimits); !errors.Is(err, ErrWrongPassphrase) {
			t.Errorf("unlocking with a passphrase that is %s: %v", name, err)
		}
	}
	for i := range 100 {
		if _, err := decodeKeyFile(data, WithPassphrase([]byte{'a', byte(i + 1)}), cheapLimits); !errors.Is(err, ErrWrongPassphrase) {
			t.Fatalf("guess %d: %v", i, err)
		}
	}
	if _, err := decodeKeyFile(data, WithPassphrase([]byte("pass")), cheapLimits); err != nil {
		t.Errorf("after a hundred wrong guesses: %v", err)
	}
}

// forge writes a key file whose checksum is right but whose parameters are an attacker's.
func forge(kind LockKind, params, body []byte) []byte {
	var w canon.Writer
	w.Raw([]byte(keyMagic)).U8(keyVersion).U8(uint8(kind)).LP(params).LP(body)
	sum := sha256.Sum256(w.Bytes())
	return w.Raw(sum[:]).Bytes()
}

func TestParametersOutsideTheLimitsAreRefusedBeforeAnyMemoryIsTaken(t *testing.T) {
	asked := Unlock{Passphrase: func() ([]byte, error) {
		t.Error("asked for a passphrase before the parameters were checked")
		return nil, ErrLocked
	}}
	for name, c := range map[string]kdfCost{
		"64 GiB":          {64 << 20, 3, 4},
		"4 TiB":           {1<<32 - 1, 3, 4},
		"one pass":        {kdfMemory, 1, 4},
		"no memory":       {0, 3, 4},
		"32 MiB":          {32 * 1024, 3, 4},
		"no threads":      {kdfMemory, 3, 0},
		"255 threads":     {kdfMemory, 3, 255},
		"a billion times": {kdfMemory, 1 << 30, 4},
	} {
		var w canon.Writer
		w.U32(c.memory).U32(c.time).U8(c.threads).Raw(make([]byte, kdfSalt))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decodeKeyFile(forge(LockPassphrase, w.Bytes(), make([]byte, 104)), asked, kdfLimits)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrKeyFileDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if after.TotalAlloc-before.TotalAlloc > 1<<20 {
			t.Errorf("%s: took %d bytes", name, after.TotalAlloc-before.TotalAlloc)
		}
	}
}

func TestATornOrFlippedKeyFileIsCalledDamaged(t *testing.T) {
	for _, lock := range []Lock{cheap("pass"), Unencrypted()} {
		data := fixedKeyFile(Seed{1}, lock)
		for n := range data {
			if _, err := decodeKeyFile(data[:n], WithPassphrase([]byte("pass")), cheapLimits); !errors.Is(err, ErrKeyFileDamaged) {
				t.Fatalf("%v cut to %d bytes: %v", lock.kind(), n, err)
			}
			bad := bytes.Clone(data)
			bad[n] ^= 0x10
			if _, err := decodeKeyFile(bad, WithPassphrase([]byte("pass")), cheapLimits); !errors.Is(err, ErrKeyFileDamaged) && !errors.Is(err, ErrNewer) {
				t.Fatalf("%v with byte %d flipped: %v", lock.kind(), n, err)
			}
		}
		if _, err := decodeKeyFile(append(bytes.Clone(data), 0), WithPassphrase([]byte("pass")), cheapLimits); !errors.Is(err, ErrKeyFileDamaged) {
			t.Errorf("with a byte too many: %v", err)
		}
	}
	for name, data := range map[string][]byte{
		"empty": nil, "something else": []byte("age-encryption.org/v1\n"), "huge": make([]byte, 1<<20),
		"unencrypted with parameters": forge(LockNone, []byte{1}, make([]byte, 64)),
		"short body":                  forge(LockNone, nil, make([]byte, 63)),
		"long body":                   forge(LockNone, nil, make([]byte, 65)),
	} {
		if _, err := decodeKeyFile(data, Unlock{}, kdfLimits); !errors.Is(err, ErrKeyFileDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := decodeKeyFile(forge(9, nil, nil), Unlock{}, kdfLimits); !errors.Is(err, ErrNewer) {
		t.Errorf("a lock of a later version: %v", err)
	}
}

func TestAKeyFileIsPrivateAndNeverOverwritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	if _, err := CreateKeyFile(path, Seed{1}, Unencrypted()); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKeyFile(path, Seed{2}, Unencrypted()); !errors.Is(err, ErrKeyFileExists) {
		t.Errorf("second identity: %v", err)
	}
	if err := placeNew(filepath.Join(dir, "key"), path); !errors.Is(err, ErrKeyFileExists) {
		t.Errorf("two first runs at once: %v", err)
	}
	k, err := OpenKeyFile(path, Unlock{})
	if err != nil || !k.Seed().Equal(Seed{1}) || k.Lock() != LockNone {
		t.Fatalf("opened %v, %v", k, err)
	}
	if names := must(os.ReadDir(dir)); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
	if runtime.GOOS == "windows" {
		return
	}
	if mode := must(os.Stat(path)).Mode().Perm(); mode != 0o600 {
		t.Errorf("mode %04o", mode)
	}
	for _, mode := range []os.FileMode{0o644, 0o620, 0o604} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeyFile(path, Unlock{}); !errors.Is(err, ErrKeyFileMode) {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	if _, err := OpenKeyFile(dir, Unlock{}); !errors.Is(err, ErrKeyFileDamaged) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := OpenKeyFile(filepath.Join(dir, "none"), Unlock{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestRewrappingChangesTheLockAndNothingElse(t *testing.T) {
	keyring.MockInit()
	path := filepath.Join(t.TempDir(), "key")
	k, err := CreateKeyFile(path, Seed{1}, Keyring("sotto-test", "ana"))
	if err != nil {
		t.Fatal(err)
	}
	first := k.entry
	open := func(pass string) *KeyFile {
		t.Helper()
		data := must(readKeyFile(path))
		return must(decodeKeyFile(data, WithPassphrase([]byte(pass)), cheapLimits))
	}
	if got := open(""); !got.Equal(k) || got.Lock() != LockKeyring {
		t.Errorf("keyring: %v", got)
	}
	if err := k.Rewrap(Keyring("sotto-test", "ana")); err != nil {
		t.Fatal(err)
	}
	if _, err := first.fetch(); !errors.Is(err, ErrKeyring) {
		t.Errorf("the old file's key is still there: %v", err)
	}
	if got := open(""); !got.Equal(k) {
		t.Errorf("second keyring entry: %v", got)
	}
	if err := k.Rewrap(cheap("pass")); err != nil {
		t.Fatal(err)
	}
	if got := open("pass"); !got.Equal(k) || got.Lock() != LockPassphrase || got.Root() != k.Root() {
		t.Errorf("passphrase: %v", got)
	}
	if err := k.Rewrap(Passphrase(nil)); !errors.Is(err, ErrInvalid) {
		t.Errorf("empty passphrase: %v", err)
	}
	if got := open("pass"); !got.Equal(k) {
		t.Errorf("a refused lock changed the file: %v", got)
	}
	if err := k.Rewrap(Unencrypted()); err != nil || !open("").Equal(k) {
		t.Errorf("unencrypted: %v", err)
	}
}

func TestAKeyringThatFailsIsNamed(t *testing.T) {
	keyring.MockInit()
	path := filepath.Join(t.TempDir(), "key")
	k, err := CreateKeyFile(path, Seed{1}, Keyring("sotto-test", "ana"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"not hex": "zz", "too short": "00", "another key": hex.EncodeToString(make([]byte, 32))} {
		if err := keyring.Set("sotto-test", k.entry.name(), text); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeyFile(path, Unlock{}); !errors.Is(err, ErrKeyring) {
			t.Errorf("%s: %v", name, err)
		}
	}
	k.entry.forget()
	if _, err := OpenKeyFile(path, Unlock{}); !errors.Is(err, ErrKeyring) {
		t.Errorf("forgotten: %v", err)
	}
	keyring.MockInitWithError(errors.New("no keyring here"))
	if _, err := CreateKeyFile(path+"2", Seed{1}, Keyring("sotto-test", "ana")); !errors.Is(err, ErrKeyring) {
		t.Errorf("create without a keyring: %v", err)
	}
	if _, err := os.Stat(path + "2"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was written that nothing can open")
	}
}
