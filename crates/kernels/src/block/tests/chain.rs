//! Several blocks as one operation.

use super::*;

/// A frozen block, one with the case's adapter, one that runs forward again, a frozen one: in one operation and in four.
fn check(case: Case) {
    let none = [const { None }; 7];
    let found = [true, false].map(|whole| {
        let [kept, again] = [false, true].map(|recompute| pass(LENGTHS, recompute));
        let again = BlockPass { gradients: kept.gradients.clone(), ..again };
        run(case, &kept, |x, of, adapted| {
            let links = [(&kept, &none), (&kept, adapted), (&again, adapted), (&kept, &none)];
            let links = links.map(|(pass, adapted)| link(of, pass, adapted));
            if whole {
                return blocks(x, &links);
            }
            links.into_iter().try_fold(x.clone(), |x, link| blocks(&x, &[link]))
        })
    });
    assert_eq!(found[0], found[1]);
}

#[test]
fn a_chain_gives_what_its_blocks_give() {
    for track_x in [true, false] {
        for case in [
            PLAIN,
            Case { head_norms: true, biases: true, dropout: 0.2, ..PLAIN },
            Case { gained: 0b101_0110, biases: true, ..PLAIN },
            Case { gained: 0x3f, ..ENCODER },
            Case { sides: Sides::Around, gained: 0b101_0110, ..PLAIN },
            Case { gained: 0b1, ..JOINED },
            Case { gained: 0b101, ..NEOX },
            Case { adapted: 0b1000, ..PLAIN },
            Case { adapted: 0, ..PLAIN },
        ] {
            check(Case { track_x, ..case });
        }
    }
}

#[test]
fn a_chain_of_nothing_gives_what_it_is_given() {
    let x = tensor(1, &[3, HIDDEN]);
    assert_eq!(flat(&blocks(&x, &[]).unwrap()), flat(&x));
}

#[test]
fn a_second_backward_pass_finds_the_same() {
    let (first, pass) = (make(PLAIN), pass(LENGTHS, false));
    let x = Var::from_tensor(&tensor(1, &[32, HIDDEN])).unwrap();
    let none = [const { None }; 7];
    let y = blocks(&x, &[link(&first, &pass, &none), link(&first, &pass, &none)]).unwrap();
    let loss = y.apply_op1(WeightedSum(values(99, y.elem_count()))).unwrap();
    let [once, twice] = [(); 2].map(|()| flat(loss.backward().unwrap().get(&x).unwrap()));
    assert_eq!(once, twice);
}
