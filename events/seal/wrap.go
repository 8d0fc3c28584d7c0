package seal

import "fmt"

// Wrap seals the key of another store under the master key. It opens with
// [Master.Unwrap] and the same context alone, which says whose key it is.
func (m Master) Wrap(key []byte, context string) []byte {
	aead, err := newAEAD(m[:])
	if err != nil {
		panic(err) // a master key has the right length
	}
	return sealBytes(aead, key, context)
}

// Unwrap opens what [Master.Wrap] sealed. It fails for another master key and
// for another context, and does not tell which.
func (m Master) Unwrap(box []byte, context string) ([]byte, error) {
	aead, err := newAEAD(m[:])
	if err != nil {
		return nil, err
	}
	key, err := unseal(aead, box, context)
	if err != nil {
		return nil, fmt.Errorf("it does not open with this master key")
	}
	return key, nil
}
