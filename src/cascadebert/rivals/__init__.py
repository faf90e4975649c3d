"""What a cascade is measured against: early exits, pruned networks and experts.

One file a method, each a :class:`~cascadebert.rivals.rival.Rival`. Early exits are
:mod:`~cascadebert.rivals.deebert`, :mod:`~cascadebert.rivals.shallow_deep`,
:mod:`~cascadebert.rivals.pabee`, :mod:`~cascadebert.rivals.berxit` and
:mod:`~cascadebert.rivals.cost_eff`; they share :mod:`~cascadebert.rivals.network`, an encoder with
an exit after every layer, and :mod:`~cascadebert.rivals.regrouping`, which runs it. Static are
:mod:`~cascadebert.rivals.first_layers`, :mod:`~cascadebert.rivals.distilled`,
:mod:`~cascadebert.rivals.pruning` and :mod:`~cascadebert.rivals.moebert`.
:mod:`~cascadebert.rivals.stage` makes any of them a stage.
"""
