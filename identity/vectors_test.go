package identity

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

// Inputs and outputs stand beside each other in the vectors, so that another implementation needs nothing else.
func TestEveryByteIsPinnedByAVector(t *testing.T) {
	p, q := newPerson("ana"), newPerson("bob")
	i := p.invite()
	reusable := Invite{Account: i.Account, Secret: i.Secret, Reusable: true}
	id := i.ID()
	bundle := must(p.bundle().Marshal(p.device, id))
	open := p.bundle()
	open.OneTime, open.Uses, open.Reach, open.Name = nil, 20, nil, ""
	list, card := must(ParseDeviceList(p.list)), must(ParseCard(p.card))
	listHash, discovery := list.Hash(), i.Discovery()
	seal := p.lk.Public()
	recordKey := p.device.RecordKey()
	one := must(NewPrekey(fixed("one-time"), 11))
	emoji := ""
	for _, e := range SafetyEmoji(p.account.ID(), q.account.ID()) {
		emoji += e
	}
	vector(t, map[string]string{
		"seed":                     hexOf(p.seed[:]),
		"seed words":               p.seed.Words(),
		"account record seed":      hexOf(p.account.key.Seed()),
		"account id":               p.account.ID().String(),
		"account signature":        hexOf(p.account.Sign("vector", []byte("fields"))),
		"device secret":            hexOf(p.device.MarshalSecret()),
		"device signature":         hexOf(p.device.Sign("vector", []byte("fields"))),
		"device record key":        hexOf(recordKey[:]),
		"device list":              hexOf(p.list),
		"device list hash":         hexOf(listHash[:]),
		"prekey secret":            hexOf(p.spk.MarshalSecret()),
		"seal secret":              hexOf(p.lk.MarshalSecret()),
		"seal public":              hexOf(seal.Key[:]),
		"one-time prekey secret":   hexOf(one.MarshalSecret()),
		"prekeys hash":             hexOf(card.Core.PrekeysHash[:]),
		"card":                     hexOf(p.card),
		"reach, signed":            hexOf(SignReach(p.device, []byte("where I am"))),
		"invite secret":            hexOf(i.Secret[:]),
		"invite id":                hexOf(id[:]),
		"invite discovery":         hexOf(discovery[:]),
		"invite link":              i.Link(),
		"invite code":              i.QR(),
		"invite link, reusable":    reusable.Link(),
		"bundle":                   hexOf(bundle),
		"bundle, reusable":         hexOf(must(open.Marshal(p.device, id))),
		"other account id":         q.account.ID().String(),
		"safety number":            SafetyNumber(p.account.ID(), q.account.ID()),
		"safety emoji":             emoji,
		"key file, unencrypted":    hexOf(fixedKeyFile(p.seed, Unencrypted())),
		"key file, passphrase":     fixedPassphraseFile,
		"key file passphrase":      "correct horse",
		"key file root":            hexOf(fixedRoot[:]),
		"key file argon2 64 MiB":   hexOf(kdfCost{kdfMemory, kdfTime, kdfThreads}.key([]byte("correct horse"), make([]byte, kdfSalt))),
		"skeleton of раураl":       Skeleton("раураl"),
		"clean name of  Ana\u202e": CleanName(" Ana\u202e"),
	})
}

func TestSeedsAndWordsAgreeWithThePublishedVectors(t *testing.T) {
	var cases []struct{ Entropy, Words string }
	if err := json.Unmarshal(must(os.ReadFile("testdata/bip39.json")), &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 8 {
		t.Fatalf("only %d vectors", len(cases))
	}
	for _, c := range cases {
		seed := Seed(must(hex.DecodeString(c.Entropy)))
		if got := seed.Words(); got != c.Words {
			t.Errorf("%s gives %q, want %q", c.Entropy, got, c.Words)
		}
		back, err := SeedFromWords(c.Words)
		if err != nil || !back.Equal(seed) {
			t.Errorf("%q gives %x, %v; want %s", c.Words, back[:], err, c.Entropy)
		}
	}
}
