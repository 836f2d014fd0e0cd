"Slices, comparison, baselines and calibration, against values counted by hand or by scipy"
import numpy as np, pandas as pd, pytest
from scipy.stats import binomtest, false_discovery_control, fisher_exact
from sft_nb.evaluation.results import Evaluation
from sft_nb.evaluation.calibration import calibrate
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.data.load import load_data
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.training.learner import sft_learner
from sft_nb.core.basics import DataError, TaskError
from sft_nb.data.task import get_task
from sft_nb.evaluation.compare import mcnemar
from sft_nb.evaluation.calibration import cooled, fit_temperature
from sft_nb.diagnosis.baselines import baseline_names
from sft_nb.tasks.toys import make_toy

def judged(right, **cols):
    "An evaluation of two classes that is right where it is told to be"
    right = np.asarray(right, dtype=bool)
    t = np.arange(len(right))%2
    rows = pd.DataFrame(dict(item=[f'{i}' for i in range(len(t))], target=[f'c{o}' for o in t], prediction=[f'c{o if r else 1-o}' for o,r in zip(t, right)],
                             probability=.8, loss=np.where(right, .2, 1.6), correct=right, **cols))
    return Evaluation(rows, get_task('image'), ['c0','c1'])

def test_slices_of_a_column_by_hand():
    "90 of 100 right in the one place, 60 of 100 in the other, 15 of 20 in the third"
    right,place = [1]*90+[0]*10+[1]*60+[0]*40+[1]*15+[0]*5,['north']*100+['south']*100+['west']*20
    s = judged(right, place=place).slices('place')
    assert list(s.slice)==['place = south','place = west','place = north'] and list(s.rows)==[100,20,100]
    assert np.allclose(s.value, [.6,.75,.9]) and np.allclose(s.rest, [105/120,150/200,75/120])
    p = [fisher_exact([[60,40],[105,15]])[1], fisher_exact([[15,5],[150,50]])[1], fisher_exact([[90,10],[75,45]])[1]]
    assert np.allclose(s.p, p) and np.allclose(s.p_corrected, false_discovery_control(p))
    assert list(s.verdict)==['worse','no difference shown','better']
    assert ((s.low<=s.difference) & (s.difference<=s.high)).all()

def test_slices_by_function_and_quantiles():
    n = 400
    ev = judged(np.arange(n)>=100, size=np.arange(n, dtype=float))
    def small(row): return row['size']<100
    by = ev.slices(small)
    assert list(by.slice)==['small = True','small = False'] and list(by.value)==[0,1]
    cut = ev.slices('size')
    assert list(cut.rows)==[100]*4 and cut.slice[0]=='size 0 to 99' and cut.value[0]==0 and cut.verdict[0]=='worse'
    assert ev.slices('size', score='loss').value[0]==pytest.approx(1.6)
    assert len(ev.slices([small,'size']))==6
    with pytest.raises(DataError, match='no such column'): ev.slices('sise')
    with pytest.raises(DataError, match='No slice has at least'): ev.slices('size', least=500)

def test_paired_comparison():
    "30 rows are won and 10 are lost; the interval is that of a plain paired bootstrap"
    a = judged([1]*80+[1]*30+[0]*10+[0]*20)
    b = judged([1]*80+[0]*30+[1]*10+[0]*20)
    assert mcnemar(a.rows.correct, b.rows.correct)==pytest.approx(binomtest(30, 40).pvalue)
    c = a.compare({'b':b}).set_index('metric').loc['accuracy']
    assert c.value==pytest.approx(110/140) and c.difference==pytest.approx(20/140) and c.p==pytest.approx(binomtest(30, 40).pvalue) and c.verdict=='better'
    d,rng = a.rows.correct.to_numpy(float)-b.rows.correct.to_numpy(float),np.random.default_rng(7)
    want = np.percentile([d[rng.integers(len(d), size=len(d))].mean() for _ in range(4000)], [2.5,97.5])
    assert np.allclose([c.low,c.high], want, atol=.015)
    assert b.compare({'a':a}).set_index('metric').verdict['accuracy']=='worse'

def test_no_difference_shown():
    a,b = judged([1]*50+[1,0]*5),judged([1]*50+[0,1]*5)
    c = a.compare({'b':b}).set_index('metric').loc['accuracy']
    assert c.difference==0 and c.p==1 and c.low<0<c.high and c.verdict=='no difference shown'
    assert mcnemar([True,False], [True,False])==1
    with pytest.raises(DataError, match='only one of them has'): a.compare({'c':judged([1]*5)})

def trained(name, folder):
    toy = make_toy(name, folder)
    dls = load_data(name, toy['source'], checkpoint=toy['checkpoint'], pretrained=False, **{**toy['load'], 'valid':.5})
    return sft_learner(dls)

@pytest.mark.parametrize('name,own', [('image','colors'), ('text','words')])
def test_baselines(name, own, tmp_path):
    "The most frequent class, a plain model of the input, a linear head on what the checkpoint gives: on the same rows, in the same order"
    learn = trained(name, tmp_path)
    ev = evaluate(learn)
    made = ev.baselines()
    assert list(made)==baseline_names(learn.spec.task)==['majority',own,'untuned']
    top = learn.spec.split('train').label.mode()
    assert made['majority'].rows.prediction.nunique()==1 and made['majority'].rows.prediction[0] in set(top)
    for e in made.values(): assert list(e.rows['item'])==list(ev.rows['item']) and np.allclose(e.probabilities.sum(1), 1, atol=1e-5)
    assert set(ev.compare().against)==set(made)
    with pytest.raises(TaskError, match='no baseline'): ev.baselines(['majorty'])

def test_baselines_of_pairs_of_texts_and_of_speech_have_names():
    assert baseline_names(get_task('image_text'))==['majority','colors','words','untuned']
    assert baseline_names(get_task('translation'))==['majority','copy','nearest','untuned']
    assert baseline_names(get_task('speech'))==['majority','untuned']

def sure(n=4000, times=3., seed=0):
    "Probabilities that are right as often as they say, and the same after their scores were multiplied"
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([1]*3, n)
    return p,cooled(p, 1/times),np.array([rng.choice(3, p=o) for o in p])

def test_the_temperature_is_found():
    p,q,t = sure()
    assert fit_temperature(q, t)==pytest.approx(3, rel=.1) and fit_temperature(p, t)==pytest.approx(1, rel=.1)
    rows = pd.DataFrame(dict(item=range(len(t)), target=[f'c{o}' for o in t], prediction=[f'c{o}' for o in q.argmax(1)], probability=q.max(1), loss=0., correct=q.argmax(1)==t))
    def ev(on): return Evaluation(rows, get_task('image'), ['c0','c1','c2'], probabilities=q, on=on)
    found = ev('valid').calibration()
    assert found.temperature==pytest.approx(3, rel=.1) and found.after['log_loss']<found.before['log_loss'] and found.after['ece']<found.before['ece']
    assert (cooled(q, found.temperature).argmax(1)==q.argmax(1)).all()
    assert ev('test').calibration().temperature is None

def test_a_calibrated_model_keeps_its_temperature(tmp_path):
    "Found on validation rows, never on the test; in the predictions, in the saved folder, and back"
    import torch
    rows = pd.concat([pd.read_csv(make_toy('text', tmp_path)['source'])]*4, ignore_index=True)
    toy = make_toy('text', tmp_path)
    rng = np.random.default_rng(0)
    rows['label'] = [l if rng.random()<.7 else rng.choice(sorted(set(rows.label))) for l in rows.label]
    rows['split'] = ['train' if i%3==0 else 'valid' if i%3==1 else 'test' for i in range(len(rows))]
    learn = sft_learner(load_data('text', rows[['text','label','split']], checkpoint=toy['checkpoint'], pretrained=False, **toy['load']))
    with learn.no_bar(), learn.no_logging(): learn.fit_head(20, lr=1e-2)
    with torch.no_grad():
        for p in list(learn.model.parameters())[-2:]: p.mul_(20)
    before = evaluate(learn, 'valid')
    for on in ('test','train'):
        with pytest.raises(DataError, match='not for calibration'): calibrate(learn, on)
    assert learn.model.temperature==1
    found = calibrate(learn)
    after = evaluate(learn, 'valid')
    assert learn.model.temperature==found.temperature>1 and after.rows.loss.mean()<before.rows.loss.mean()
    assert list(after.rows.prediction)==list(before.rows.prediction)
    model = load_predictor(save_predictor(learn, tmp_path/'saved'))
    assert model.model.temperature==pytest.approx(found.temperature)
    assert np.allclose(model.predict(list(after.rows.text)).probability, after.rows.probability, atol=1e-4)
