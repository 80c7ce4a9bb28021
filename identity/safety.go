package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"strings"
)

// Safety numbers are Signal's numeric fingerprints, so that the algorithm is one that others have looked at (PROTOCOL 14).
const (
	fingerprintVersion    = 0
	fingerprintIterations = 5200
)

// SafetyNumber is the same 60 digits at both ends, in twelve groups of five, if both ends see the same two account keys.
func SafetyNumber(a, b AccountID) string {
	digits := joinFingerprints(fingerprint(a[:], a[:]), fingerprint(b[:], b[:]))
	var out strings.Builder
	for i := 0; i < len(digits); i += 5 {
		if i > 0 {
			out.WriteByte(' ')
		}
		out.WriteString(digits[i : i+5])
	}
	return out.String()
}

// SafetyEmoji is a short form of the same comparison, for a glance. Two keys that share all six can be searched for, so
// only the digits make a contact verified.
func SafetyEmoji(a, b AccountID) [6]string {
	fa, fb := fingerprint(a[:], a[:]), fingerprint(b[:], b[:])
	if bytes.Compare(fa, fb) > 0 {
		fa, fb = fb, fa
	}
	h := sha256.New()
	h.Write([]byte("sotto/v1 safety emoji"))
	h.Write(fa)
	h.Write(fb)
	sum := h.Sum(nil)
	var out [6]string
	for i := range out {
		out[i] = emoji(sum[i])
	}
	return out
}

// fingerprint is Signal's iterated hash of one side: its key and its stable identifier.
func fingerprint(key, id []byte) []byte {
	hash := append([]byte{fingerprintVersion >> 8, fingerprintVersion}, key...)
	hash = append(hash, id...)
	for range fingerprintIterations {
		sum := sha512.Sum512(append(hash, key...))
		hash = sum[:]
	}
	return hash
}

// joinFingerprints writes 30 digits for each side, the smaller first.
func joinFingerprints(a, b []byte) string {
	da, db := fingerprintDigits(a), fingerprintDigits(b)
	if da > db {
		da, db = db, da
	}
	return da + db
}

func fingerprintDigits(hash []byte) string {
	var out strings.Builder
	for i := 0; i < 30; i += 5 {
		var v uint64
		for _, b := range hash[i : i+5] {
			v = v<<8 | uint64(b)
		}
		fmt.Fprintf(&out, "%05d", v%100000)
	}
	return out.String()
}

// emoji picks one of 64 by the low six bits. The table is part of the protocol: never reorder it.
func emoji(b byte) string { return strings.Fields(emojiTable)[b&63] }

const emojiTable = `
🐶 🐱 🦁 🐴 🐷 🐘 🐰 🐼
🐔 🐧 🐢 🐟 🐙 🦋 🐝 🐌
🌵 🌲 🍀 🍁 🌹 🌻 🍄 🌙
⭐ 🔥 🌈 ⚡ 🌂 ⛄ 🍎 🍌
🍇 🍒 🍓 🍋 🍉 🥕 🌽 🍞
🧀 🍕 🎂 ☕ 🔑 🔨 🧲 📌
💡 ⏰ 📷 📚 🧵 🔔 🎸 🥁
🎈 🎁 ⚽ 🏆 🚗 🚲 🚂 ⚓`
