package wire

import (
	"fmt"

	"sotto/internal/canon"
)

// TokenGrant lets a contact leave mail at the mailboxes that the granting side's card names: tokens From to From+Count-1 of Seed, at each of
// its boxes (PROTOCOL 17.4). A later grant of the same seed replaces an earlier one.
type TokenGrant struct {
	Seed  [32]byte
	From  uint32
	Count uint32
}

const grantVersion = 1

// MaxGranted bounds what a grant may count to: more than any box has tokens for.
const MaxGranted = 1 << 24

// Marshal is 1 u8 || seed 32 || from u32 || count u32.
func (g TokenGrant) Marshal() []byte {
	var w canon.Writer
	return w.U8(grantVersion).Raw(g.Seed[:]).U32(g.From).U32(g.Count).Bytes()
}

// ParseTokenGrant reads what Marshal wrote.
func ParseTokenGrant(b []byte) (TokenGrant, error) {
	r := canon.NewReader(b)
	if v := r.U8(); r.Err() == nil && v != grantVersion {
		return TokenGrant{}, fmt.Errorf("token grant: needs a newer version: %d", v)
	}
	var g TokenGrant
	r.Copy(g.Seed[:])
	g.From, g.Count = r.U32(), r.U32()
	if err := r.Close(); err != nil {
		return TokenGrant{}, fmt.Errorf("token grant: %w", err)
	}
	if g.Count == 0 || g.From > MaxGranted || g.Count > MaxGranted {
		return TokenGrant{}, fmt.Errorf("token grant: %d tokens from %d", g.Count, g.From)
	}
	return g, nil
}
